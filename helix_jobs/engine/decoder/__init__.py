"""The forward pass: one decoder for all supported families, with fused projections and packed weights."""
