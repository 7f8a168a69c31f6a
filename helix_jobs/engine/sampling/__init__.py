"""Sampling: logits to probabilities to tokens, and which draft tokens are accepted."""
