"""What tests do about services that are not there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing_service(what: str) -> NoReturn:
    """A laptop may lack a service; CI may not."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; CI must have it")
    pytest.skip(what)
