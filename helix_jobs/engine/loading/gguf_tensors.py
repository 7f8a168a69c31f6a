"""GgufTensor and GgufWeight: a file's tensors, and the parameters of transformers' model that are made of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from helix_jobs.engine.loading.stored_tensor import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from helix_jobs.engine.loading.gguf_family import Form, GgufFamily, Share, Source, Tiling

_LAYER: Final = re.compile(r"blk\.(\d{1,9})\.(.+)")
_KINDS: Final = ("weight", "bias")
_STACKED_DIMENSIONS: Final = 3
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

    def matrices(self) -> list[GgufTensor]:
        """The matrices that stand one behind another in a tensor of several."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        count, *shape = self.stored.shape
        weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.stored.kind]]
        size = math.prod(shape) // weights * nbytes
        own = StoredTensor(self.stored.kind, tuple(shape))
        return [replace(self, stored=own, place=self.place + index * size) for index in range(count)]

    def floats(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A tensor that is stored as float32, flat."""
        assert self.stored.kind == "F32", "asked only of those"
        with self.file.open("rb") as stream:
            stream.seek(self.place)
            return np.fromfile(stream, dtype="<f4", count=self.stored.elements)


class Span(NamedTuple):
    """Consecutive rows, or numbers, of a tensor.

    Attributes:
        first: The first one.
        length: How many.
        total: All of the tensor.
    """

    first: int
    length: int
    total: int


class Heads(NamedTuple):
    """Heads of queries, of keys and of values, and their width."""

    queries: int
    keys: int
    width: int

    def span(self, share: Share) -> Span | None:
        """The rows of a share in a tensor with all queries, then all keys, then all values; None for all rows."""
        queries, keys = self.queries * self.width, self.keys * self.width
        total = queries + 2 * keys
        if share == "queries":
            return Span(0, queries, total)
        if share == "all":
            return None
        return Span(queries + (0 if share == "keys" else keys), keys, total)


@dataclass(frozen=True, slots=True)
class GgufWeight:
    """One parameter.

    Attributes:
        parts: The tensors that it is made of.
        form: How.
        tiling: See ``Tiling``.
        span: The rows of its tensor that it consists of; None for all.
    """

    parts: tuple[GgufTensor, ...]
    form: Form
    tiling: Tiling = "none"
    span: Span | None = None

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
        if self.span is not None:
            return (self.span.length, *first[1:]) if first[0] == self.span.total else ()
        if self.form in STACKED_FORMS:
            return _stacked(shapes, is_flipped=self.form != "stack")
        shaped: dict[Form, tuple[int, ...]] = {
            "transposed": first[::-1],
            "row": (1, *first[-1:]),
            "conv": (*first[:-1], 1, *first[-1:]),
            "latent": _latent(shapes),
            **dict.fromkeys(("rows", "delta"), (sum(shape[0] for shape in shapes), *first[1:])),
            **dict.fromkeys(("flat", "exponential"), (math.prod(first),)),
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


def weights_of(family: GgufFamily, tensors: Mapping[str, GgufTensor], heads: Heads) -> dict[str, GgufWeight]:
    """The parameters that a file's tensors make, by transformers' names; an unknown tensor keeps its name.

    Tensors of a parameter that lacks others of its parts are left out, so that the parameter is found missing.

    Args:
        family: How the file is read.
        tensors: Its tensors by its names of them.
        heads: Those of its layers with attention.
    """
    owners: dict[str, list[tuple[str, Source]]] = {}
    for parameter, source in family.parameters.items():
        for part in source.parts:
            owners.setdefault(part, []).append((parameter, source))
    found: dict[str, GgufWeight] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.fullmatch(name)
        own = () if layer is None else owners.get(layer[2], ())
        if layer is not None and own:
            for parameter, source in own:
                parts = [tensors.get(f"blk.{layer[1]}.{part}") for part in source.parts]
                there = tuple(part for part in parts if part is not None)
                if len(there) == len(parts):
                    found[f"{family.layers}.{layer[1]}.{parameter}"] = GgufWeight(
                        there, source.form, source.tiling, heads.span(source.share)
                    )
            continue
        module, _, kind = (name if layer is None else layer[2]).rpartition(".")
        if layer is None and module in family.stacked and len(tensor.stored.shape) == _STACKED_DIMENSIONS:
            for index, matrix in enumerate(tensor.matrices()):
                found[f"{family.stacked[module]}.{index}.{kind}"] = GgufWeight((matrix,), "plain")
            continue
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
