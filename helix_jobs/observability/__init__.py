"""Logging and metrics. Pure standard library: imported by every command."""
