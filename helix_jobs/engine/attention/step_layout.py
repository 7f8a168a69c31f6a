"""StepLayout: how the tokens of one ragged step are packed, and which cache rows each of them reads and writes.

Planned once a step (see ``step_plan``) and used by every layer. A *slice* is a sequence's new tokens of this step. The
backend decides how to attend for slices and in which order they are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from helix_jobs.engine.attention.cache_geometry import BlockRows
    from helix_jobs.engine.state_span import StateSpan


@dataclass(frozen=True, slots=True)
class TokenSlice:
    """New tokens of one sequence in this step.

    Attributes:
        num_tokens: Number of new tokens.
        start: Position of the first new token, and so the number of tokens already in the cache.
        blocks: The sequence's block table, long enough for ``start + num_tokens`` tokens. Where the layers have a
            window, the entries that no token from ``start`` on sees may hold anything.
        state: Its part of the state cache, for a model with recurrent layers. None begins with the state before the
            first token, and keeps nothing.
        further: The block tables of the sections of layers behind the first one, see ``CacheSections``.
        adapter: The adapter that it is computed with, counted from 1; 0 for the model itself.
        is_long: Whether the sequence has outgrown the target's original context, see ``rotary_rows``.
    """

    num_tokens: int
    start: int
    blocks: Sequence[int]
    state: StateSpan | None = None
    further: Sequence[Sequence[int]] = ()
    adapter: int = 0
    is_long: bool = False

    def table(self, section: int) -> Sequence[int]:
        """The block table of a section of layers."""
        return self.further[section - 1] if section else self.blocks


@dataclass(frozen=True, slots=True)
class StepLayout:
    """The packed step, on the device.

    Attributes:
        num_tokens: ``T``, tokens in the step, including those that pad it to a device's fixed shapes.
        positions: ``[T]`` position of each token in its sequence.
        num_positions: All positions are below it.
        write_rows: ``[T * num_kv_heads]`` rows of the cache's token view, token-major, for each kind of rows that
            layers have.
        attention: The part that the planning backend needs to attend.
        states: The part that recurrent layers need; None for a model without them.
        further: The same tokens for the layers of each section behind the first one, whose blocks are others.
        adapters: What adapted products need; None if no token has an adapter.
        rotary_rows: ``[T]`` row of each token in rotary tables with long frequencies; None for a model without them.
    """

    num_tokens: int
    positions: torch.Tensor
    num_positions: int
    write_rows: Mapping[BlockRows, torch.Tensor]
    attention: object
    states: object = None
    further: tuple[StepLayout, ...] = ()
    adapters: Any = None
    rotary_rows: torch.Tensor | None = None
