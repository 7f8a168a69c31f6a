"""How rows of a pool, the cache of keys and values for one, are written on each kind of device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helix_jobs.engine.devices.row_writer import row_writer
from tests.unit.engine.devices.operator_rules import operator_name


class Operators(TorchDispatchMode):
    """Notes what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(operator_name(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device_type", "operator"),
    [
        ("privateuseone", "aten::scatter_"),
        ("mps", "aten::index_put_"),
        ("cuda", "aten::index_copy_"),
        ("cpu", "aten::index_copy_"),
    ],
)
def test_each_device_writes_rows_with_an_operator_it_has(device_type: str, operator: str) -> None:
    pool, new = torch.zeros(8, 3), torch.arange(6.0).view(2, 3)
    with Operators() as ran:
        row_writer(device_type)(pool, torch.tensor([6, 1]), new)
    assert [name for name in ran.names if name.endswith("_")] == [operator]
    expected = torch.zeros(8, 3)
    expected[6], expected[1] = new[0], new[1]
    assert torch.equal(pool, expected)
