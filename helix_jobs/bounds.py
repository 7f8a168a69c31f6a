"""Bounds: numbers that several rooms go by, each once."""

from __future__ import annotations

from typing import Final

# Of a job; higher runs first.
MAX_PRIORITY: Final = 9
# That a request may ask for.
MAX_NEW_TOKENS: Final = 131_072
MAX_SPECULATION_DEPTH: Final = 16
# Sequences that may run at once.
MAX_BATCH_SIZE: Final = 4096
# Where neither a setting nor the device says otherwise.
DEFAULT_MAX_BATCH_SIZE: Final = 32
