"""Recurrence: layers that carry a state of fixed size from token to token instead of keys and values."""
