"""StepPlan: a step's layout, planned on the host in NumPy; one upload turns it into a ``StepLayout``.

This module plans the part that every attention backend needs; each backend plans the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from helix_jobs.engine.attention.step_layout import StepLayout
from helix_jobs.engine.cache_sections import first_seen
from helix_jobs.engine.devices.shape_sizes import token_size

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from helix_jobs.engine.attention.cache_geometry import BlockRows
    from helix_jobs.engine.attention.step_layout import TokenSlice

    IntArray = NDArray[np.int64]
    # Tensors that the sections of one step share, each by all that it is made of.
    SharedTensors = dict[Hashable, torch.Tensor]

# Key lengths up to this many blocks count as one length: a call costs more than the padding.
_MIN_BLOCK_BUCKET: Final = 8


class AttentionPlan(Protocol):
    """A part of a plan that one kind of layer reads: a backend's own, that of recurrent layers, or of adapters."""

    def arrays(self) -> list[IntArray]:
        """The arrays to upload."""

    def on_device(self, uploaded: Iterator[torch.Tensor], shared: SharedTensors) -> object:
        """Make the backend's part of the layout.

        Args:
            uploaded: The ``arrays``, on the device.
            shared: What other sections of the step have made; what this one makes is added.
        """


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The packed step, on the host.

    Attributes:
        num_tokens: Tokens of all slices.
        order: Slices in packed order (indices into the planner's input).
        offsets: For each input slice, where it starts in the packed row.
        positions: ``[T]`` as in the layout; ``T`` exceeds ``num_tokens`` where shapes are padded.
        num_positions: As in the layout.
        write_rows: As in the layout.
        attention: The backend's own part.
        states: The part of recurrent layers; None for a model without them.
        further: The plans of the same tokens for each section of layers behind the first one.
        adapters: The part of adapted products; None if no token has an adapter.
        rotary_rows: As in the layout.
    """

    num_tokens: int
    order: tuple[int, ...]
    offsets: tuple[int, ...]
    positions: IntArray
    num_positions: int
    write_rows: Mapping[BlockRows, IntArray]
    attention: AttentionPlan
    states: AttentionPlan | None = None
    further: tuple[StepPlan, ...] = ()
    adapters: AttentionPlan | None = None
    rotary_rows: IntArray | None = None

    def arrays(self) -> list[IntArray]:
        """The arrays to upload."""
        states = [] if self.states is None else self.states.arrays()
        further = [array for plan in self.further for array in plan.arrays()]
        adapters = [] if self.adapters is None else self.adapters.arrays()
        rows = [] if self.rotary_rows is None else [self.rotary_rows]
        kept = [self.positions, *self.write_rows.values(), *self.attention.arrays()]
        return [*kept, *states, *further, *adapters, *rows]

    def on_device(self, uploaded: Iterator[torch.Tensor], shared: SharedTensors | None = None) -> StepLayout:
        """Make the layout from the uploaded ``arrays``; ``shared`` as in ``AttentionPlan``."""
        shared = {} if shared is None else shared
        return StepLayout(
            num_tokens=len(self.positions),
            positions=next(uploaded),
            num_positions=self.num_positions,
            write_rows={rows: next(uploaded) for rows in self.write_rows},
            attention=self.attention.on_device(uploaded, shared),
            states=None if self.states is None else self.states.on_device(uploaded, shared),
            further=tuple(plan.on_device(uploaded, shared) for plan in self.further),
            adapters=None if self.adapters is None else self.adapters.on_device(uploaded, shared),
            rotary_rows=None if self.rotary_rows is None else next(uploaded),
        )


@dataclass(frozen=True, slots=True)
class PackedSlices:
    """Slices in packed order: a ``StepPlan`` whose attention is not planned yet.

    Attributes:
        num_tokens: As in the plan.
        order: As in the plan.
        offsets: As in the plan.
        tables: ``[num_slices, max_blocks]`` block tables, see ``_tables``.
        positions: As in the plan.
        num_positions: As in the plan.
        write_rows: As in the plan.
    """

    num_tokens: int
    order: tuple[int, ...]
    offsets: tuple[int, ...]
    tables: IntArray
    positions: IntArray
    num_positions: int
    write_rows: Mapping[BlockRows, IntArray]

    @classmethod
    def of(
        cls,
        slices: Sequence[TokenSlice],
        order: Sequence[int],
        block_rows: Iterable[BlockRows],
        block_size: int,
        *,
        spare_block: int | None = None,
        least_tokens: int = 0,
        section: int = 0,
        window: int | None = None,
    ) -> PackedSlices:
        """Pack slices.

        Args:
            slices: New tokens per sequence, each with at least one token.
            order: Indices of all of them, in packed order.
            block_rows: The rows of the section's layers, each once.
            block_size: Tokens a block.
            spare_block: First of the cache's blocks that padding is written to. Given if shapes must repeat.
            least_tokens: With a spare block, the least number of tokens to pad to; at most ``SMALL_STEP``.
            section: The section of layers to pack for.
            window: Keys that its queries see at most; None for all.
        """
        offsets = [0] * len(slices)
        num_tokens = 0
        for index in order:
            offsets[index] = num_tokens
            num_tokens += slices[index].num_tokens

        tables = _tables(slices, block_size, section, window)
        positions = np.concatenate(
            [np.arange(slices[i].start, slices[i].start + slices[i].num_tokens, dtype=np.int64) for i in order]
        )
        owners = np.repeat(np.asarray(order), [slices[i].num_tokens for i in order])
        blocks = tables[owners, positions // block_size]
        num_positions = int(positions.max()) + 1
        slots = positions % block_size
        if spare_block is not None:
            padding = np.arange(token_size(max(num_tokens, least_tokens)) - num_tokens, dtype=np.int64)
            positions = np.concatenate((positions, np.zeros_like(padding)))
            blocks = np.concatenate((blocks, spare_block + padding // block_size))
            slots = np.concatenate((slots, padding % block_size))
        write_rows = {}
        for own in block_rows:
            heads = np.arange(own.num_heads, dtype=np.int64)
            # [T, num_kv_heads]
            rows = (blocks[:, None] * own.stride + heads) * block_size + slots[:, None]
            write_rows[own] = rows.reshape(-1)
        return cls(num_tokens, tuple(order), tuple(offsets), tables, positions, num_positions, write_rows)

    def planned(self, attention: AttentionPlan) -> StepPlan:
        """The whole plan, given the backend's part."""
        return StepPlan(
            self.num_tokens, self.order, self.offsets, self.positions, self.num_positions, self.write_rows, attention
        )


def num_blocks_of(num_tokens: int, block_size: int) -> int:
    """Number of blocks that ``num_tokens`` tokens take."""
    return -(-num_tokens // block_size)


def block_bucket(num_blocks: int) -> int:
    """The bucket of ``num_blocks`` blocks: a power of two."""
    return max(_MIN_BLOCK_BUCKET, 1 << (num_blocks - 1).bit_length())


def _tables(slices: Sequence[TokenSlice], block_size: int, section: int, window: int | None) -> IntArray:
    """Block tables as one array ``[num_slices, max_blocks]``.

    Entries that are unused, or that no query sees, are always masked. They repeat a block of the slice's own: a masked
    NaN would still spread, so no slice reads another sequence's block.
    """
    used = [num_blocks_of(part.start + part.num_tokens, block_size) for part in slices]
    tables = np.empty((len(slices), block_bucket(max(used))), dtype=np.int64)
    for row, (part, count) in enumerate(zip(slices, used, strict=True)):
        first, blocks = first_seen(window, part.start, block_size), part.table(section)
        tables[row, first:count] = blocks[first:count]
        tables[row, :first] = tables[row, count:] = blocks[first]
    return tables
