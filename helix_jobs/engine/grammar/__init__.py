"""Constraints compiled for the model's vocabulary by llguidance, within limits, and kept for other requests."""
