"""Tensors that checkpoints store in parts, and transformers' modules hold as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.loading.stored_tensor import StoredTensor
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


def with_joined_tensors(
    name: str, tensors: Mapping[str, StoredTensor], joins: tuple[tuple[tuple[str, ...], str], ...]
) -> dict[str, StoredTensor]:
    """The tensors as transformers' modules have them.

    Args:
        name: The model's name as the user gave it.
        tensors: A checkpoint's tensors.
        joins: Of the checkpoint's family, see ``Family``.

    Raises:
        ModelError: Parts are missing, or do not fit together.
    """
    found = dict(tensors)
    for parts, whole in joins:
        stems = {tensor.removesuffix(part) for tensor in tensors for part in parts if tensor.endswith(f".{part}")}
        for stem in sorted(stems):
            there = [found.pop(f"{stem}{part}", None) for part in parts]
            stored = tuple(one for one in there if one is not None)
            shapes = [one.shape for one in stored]
            if len(shapes) != len(parts) or len({shape[1:] for shape in shapes}) != 1 or not all(shapes):
                raise ModelError(
                    f"model {name}: the weights {', '.join(parts)} of {stem:.200} do not fit together, or one is "
                    "missing; fetch the model again"
                )
            rows = sum(shape[0] for shape in shapes)
            found[f"{stem}{whole}"] = StoredTensor(stored[0].kind, (rows, *shapes[0][1:]), is_merged=True, parts=stored)
    return found
