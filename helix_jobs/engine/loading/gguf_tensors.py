"""GgufTensor and GgufWeight: a file's tensors, and the parameters of transformers' model that are made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from helix_jobs.engine.loading.stored_tensor import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from helix_jobs.engine.loading.gguf_family import Form, GgufFamily, Tiling

_LAYER: Final = re.compile(r"blk\.(\d{1,9})\.(.+)")
_KINDS: Final = ("weight", "bias")
# Forms in which every expert's matrix is stored by itself, and transformers has one parameter of them all.
STACKED_FORMS: Final = frozenset({"stack", "flipped", "paired"})


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        stored: Its type and shape, as the file has them.
        file: The file.
        place: Offset of its bytes there.
    """

    stored: StoredTensor
    file: Path
    place: int

    @property
    def row_length(self) -> int:
        """Number of weights in a row."""
        return self.stored.shape[-1]

    def floats(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A tensor that is stored as float32, flat."""
        assert self.stored.kind == "F32", "asked only of those"
        with self.file.open("rb") as stream:
            stream.seek(self.place)
            return np.fromfile(stream, dtype="<f4", count=self.stored.elements)


@dataclass(frozen=True, slots=True)
class GgufWeight:
    """One parameter.

    Attributes:
        parts: The tensors that it is made of.
        form: How.
        tiling: See ``Tiling``.
    """

    parts: tuple[GgufTensor, ...]
    form: Form
    tiling: Tiling = "none"

    @property
    def stored(self) -> StoredTensor:
        """Its type and its shape in transformers' model.

        Trade-off: parts of different types, and tables, count as plain numbers of 32 bits, which reckons with too much
        memory.
        """
        kinds = {part.stored.kind for part in self.parts}
        has_blocks = len(kinds) == 1 and self.form not in ("decoded", "latent")
        return StoredTensor(kinds.pop() if has_blocks else "F32", self._shape())

    def _shape(self) -> tuple[int, ...]:
        shapes = [part.stored.shape for part in self.parts]
        first = shapes[0]
        if any(len(shape) != len(first) for shape in shapes):
            return ()
        if self.form in STACKED_FORMS:
            return _stacked(shapes, is_flipped=self.form != "stack")
        shaped: dict[Form, tuple[int, ...]] = {
            "transposed": first[::-1],
            "row": (1, *first[-1:]),
            "conv": (*first[:-1], 1, *first[-1:]),
            "latent": _latent(shapes),
            **dict.fromkeys(("rows", "delta"), (sum(shape[0] for shape in shapes), *first[1:])),
        }
        return shaped.get(self.form, first)


def _latent(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of the matrix of ``[heads, rank, keys]`` and ``[heads, values, rank]``."""
    if len(shapes) != 2 or len(shapes[0]) != 3:  # noqa: PLR2004  (keys and values, by head)
        return ()
    (heads, rank, keys), (_, values, _) = shapes
    return heads * (keys + values), rank


def _stacked(shapes: list[tuple[int, ...]], *, is_flipped: bool) -> tuple[int, ...]:
    """The shape of matrices, or biases, of experts."""
    count, *inner = shapes[0]
    outputs = [sum(shape[1] for shape in shapes)] if inner else []
    rest = (*outputs, *inner[1:])
    return (count, *(rest[::-1] if is_flipped else rest))


def weights_of(family: GgufFamily, tensors: Mapping[str, GgufTensor]) -> dict[str, GgufWeight]:
    """The parameters that a file's tensors make, by transformers' names; an unknown tensor keeps its name.

    Tensors of a parameter that lacks others of its parts are left out, so that the parameter is found missing.
    """
    owners = {part: parameter for parameter, source in family.parameters.items() for part in source.parts}
    found: dict[str, GgufWeight] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer is not None and (parameter := owners.get(layer[2])) is not None:
            source = family.parameters[parameter]
            parts = [tensors.get(f"blk.{layer[1]}.{part}") for part in source.parts]
            there = tuple(part for part in parts if part is not None)
            if len(there) == len(parts):
                found[f"{family.layers}.{layer[1]}.{parameter}"] = GgufWeight(there, source.form, source.tiling)
            continue
        module, _, kind = (name if layer is None else layer[2]).rpartition(".")
        theirs = (family.outer if layer is None else family.modules).get(module)
        if theirs is None or kind not in _KINDS:
            found[name] = GgufWeight((tensor,), "plain")
            continue
        prefix = "" if layer is None else f"{family.layers}.{layer[1]}."
        found[f"{prefix}{theirs}.{kind}"] = GgufWeight((tensor,), _form(family, module, kind))
    return found


def without_draft_layers(tensors: Mapping[str, GgufTensor], num_layers: int) -> dict[str, GgufTensor]:
    """The tensors without those of layers behind the last one."""
    layers = {name: _LAYER.fullmatch(name) for name in tensors}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if (layer := layers[name]) is None or int(layer[1]) < num_layers
    }


def _form(family: GgufFamily, module: str, kind: str) -> Form:
    if module in family.permuted:
        return "permuted"
    if module in family.decoded:
        return "decoded"
    return "transposed" if module in family.transposed and kind == "weight" else "plain"
