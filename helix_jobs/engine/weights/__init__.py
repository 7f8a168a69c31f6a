"""Weights: how a matrix is stored and multiplied: in the model's dtype, as int8, in blocks, in tiles."""
