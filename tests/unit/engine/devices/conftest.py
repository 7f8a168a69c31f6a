from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.engine.devices.simulated_directml import SimulatedDirectml

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def device() -> Iterator[SimulatedDirectml]:
    """A simulated DirectML device; breaches fail the test that made them."""
    with SimulatedDirectml() as simulated:
        yield simulated
    assert not simulated.breaches
