"""Depth: how many tokens each sequence drafts, chosen from measured costs and acceptance. Torch only in ``profile``."""
