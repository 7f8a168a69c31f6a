"""This machine's clock in another time zone, for a while."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def machine_clock(zone: str) -> Iterator[None]:
    """Have the clock of this machine show the time of a zone, such as ``Europe/Berlin``."""
    try:
        with patch.dict(os.environ, TZ=zone):
            time.tzset()
            yield
    finally:
        time.tzset()
