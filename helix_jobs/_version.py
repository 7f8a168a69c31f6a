"""The version, only here: the build reads this file, so it imports nothing."""

__version__ = "0.1.0"
