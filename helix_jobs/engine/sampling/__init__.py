"""Sampling: logits to probabilities to tokens, and which drafted tokens are accepted."""
