"""Model: one decoder for all supported families, the layout of a step, and the paged cache of keys and values."""
