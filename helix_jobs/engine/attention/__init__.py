"""Attention: queries against the paged cache of keys and values."""
