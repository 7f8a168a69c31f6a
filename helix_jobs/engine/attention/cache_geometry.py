"""CacheGeometry: what the layers of a model keep of each token, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from helix_jobs.engine.attention.features import features_of
from helix_jobs.engine.attention.stored_rows import row_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What one layer keeps of a token: a key and a value for each of its key-value heads.

    Attributes:
        num_kv_heads: Key-value heads.
        head_dim: Width of a key, and of a query.
        value_dim: Width of a value; None for that of a key.
        has_values: Whether values are stored. Else a value is the first columns of its key (DeepSeek's latents).
        source: Index of the earlier layer whose keys and values this one reads (Gemma 4); it then keeps none itself.
            None for its own.
    """

    num_kv_heads: int
    head_dim: int
    value_dim: int | None = None
    has_values: bool = True
    source: int | None = None

    def __post_init__(self) -> None:
        assert self.has_values or self.value_width <= self.head_dim, "such values are columns of the keys"

    # Worked out once: every layer of a step asks for these. (A cached property needs a class without slots.)

    @cached_property
    def value_width(self) -> int:
        """Width of a value."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def stored_value_width(self) -> int:
        """Elements that a value takes beside its key."""
        return self.value_width if self.has_values else 0

    @cached_property
    def num_new_heads(self) -> int:
        """Key-value heads that the layer itself computes of a token."""
        return self.num_kv_heads if self.source is None else 0

    @property
    def token_elements(self) -> int:
        """Elements that a token takes in this layer's own blocks."""
        return self.num_new_heads * (self.head_dim + self.stored_value_width)

    def token_bytes(self, stored: torch.dtype) -> int:
        """Bytes that a token takes in this layer's own blocks.

        Args:
            stored: The dtype of the cache's numbers.
        """
        values = row_bytes(self.value_width, stored) if self.has_values else 0
        return self.num_new_heads * (row_bytes(self.head_dim, stored) + values)

    @property
    def widest(self) -> int:
        """Elements of a token's keys, or of its values if these are wider."""
        return self.num_kv_heads * max(self.head_dim, self.value_width)


class BlockRows(NamedTuple):
    """The rows of one layer in the gather view of its keys, and in that of its values: a row is a head of a block.

    It is a key of small tables that every layer of a step looks into, and a tuple is hashed fast.

    Attributes:
        num_heads: Key-value heads; the rows of a block stand one behind another.
        stride: Rows from the beginning of one block to that of the next.
    """

    num_heads: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class CacheGeometry:
    """Shapes of a model's keys and values.

    Attributes:
        layers: The shape of each layer that has attention, in order.
    """

    layers: tuple[CacheShape, ...]

    def __post_init__(self) -> None:
        for index, shape in enumerate(self.layers):
            if shape.source is not None:
                kept = self.layers[shape.source]
                assert shape.source < index, "keys are read behind the layer that writes them"
                assert kept.source is None, "keys are read from the layer that keeps them"
                assert replace(shape, source=None) == kept, "keys are read as they were written"

    @classmethod
    def uniform(cls, *, num_layers: int, num_kv_heads: int, head_dim: int) -> CacheGeometry:
        """Of a model whose layers all keep the same."""
        return cls(layers=(CacheShape(num_kv_heads=num_kv_heads, head_dim=head_dim),) * num_layers)

    # Worked out once, as above.

    @cached_property
    def head_dims(self) -> tuple[int, ...]:
        """The widths of its layers' keys, each once."""
        return tuple(dict.fromkeys(shape.head_dim for shape in self.layers))

    @cached_property
    def widest(self) -> int:
        """The most elements that a layer's keys of a token have, or its values."""
        return max(shape.widest for shape in self.layers)

    @property
    def shapes(self) -> tuple[CacheShape, ...]:
        """The shapes of its layers, each once. A layer that reads another's keys has that layer's shape."""
        return tuple(dict.fromkeys(replace(shape, source=None) for shape in self.layers))

    @property
    def can_share_blocks(self) -> bool:
        """Whether layers of different shapes can lie in one block: each has values, as wide as its keys."""
        return all(shape.has_values and shape.value_width == shape.head_dim for shape in self.layers)

    def shares_blocks(self, sections: Sequence[int]) -> bool:
        """Whether layers of different shapes lie in blocks that each section divides in its own way.

        Args:
            sections: The section of each layer; empty where all are in the first.
        """
        return len(self.shapes) > 1 and len(set(sections)) > 1

    @property
    def features(self) -> frozenset[str]:
        """What goes beyond heads of one shape: fields that some layer uses, and ``layers`` where shapes differ.

        See ``features_of``.
        """
        used = frozenset().union(*map(features_of, self.layers))
        return used | {"layers"} if len(self.shapes) > 1 else used

    def block_bytes(self, block_size: int, stored: torch.dtype) -> int:
        """Bytes that one block of keys and values takes over all layers.

        Args:
            block_size: Tokens a block.
            stored: The dtype of the cache's numbers.
        """
        return sum(shape.token_bytes(stored) for shape in self.layers) * block_size
