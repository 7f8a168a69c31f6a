"""Attention: how a step's tokens are packed, the paged cache of keys and values, and the backends that attend."""
