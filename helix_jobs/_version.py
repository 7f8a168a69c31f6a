"""The version, in its one place: the build reads this file, and it imports nothing."""

__version__ = "0.1.0"
