"""Attention: how the tokens of a step are packed, the paged cache of keys and values, and who attends to it."""
