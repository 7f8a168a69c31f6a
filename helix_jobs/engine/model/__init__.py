"""Model: one decoder for all supported families, its layers, and the runner that plans and runs its passes."""
