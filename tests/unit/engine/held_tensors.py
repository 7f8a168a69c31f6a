"""The memory that a decoder really holds: every tensor that is reached from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from helix_jobs.engine.attention.rotary import RotaryTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.engine.model.decoder import Decoder


def held_bytes(decoder: Decoder) -> int:
    """Bytes of its tensors, shared memory once.

    Single numbers are left out, and rotary tables, which grow with the positions in use.
    """
    found: dict[int, int] = {}
    for tensor in _tensors(decoder, set()):
        if tensor.is_mkldnn:  # has no storage that could be shared
            found[id(tensor)] = tensor.numel() * tensor.itemsize
        else:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(value) in seen or isinstance(value, RotaryTable | type | str):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if value.dim():
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one, seen)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one, seen)
    elif type(value).__module__.startswith("helix_jobs."):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        for name in {*slots, *getattr(value, "__dict__", {})}:
            yield from _tensors(getattr(value, name, None), seen)
