"""ModelRunner: one decoder with its paged cache; the only caller of a model's forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from helix_jobs.engine.attention import AttentionClock
from helix_jobs.engine.decoder.decoder import padded_rows
from helix_jobs.engine.kv_cache import PagedKVCache
from helix_jobs.engine.step_plan import plan_step
from helix_jobs.engine.upload import upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from helix_jobs.engine.config import CacheConfig
    from helix_jobs.engine.decoder.decoder import Decoder
    from helix_jobs.engine.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.step_plan import StepPlan

    IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlannedPass:
    """One forward, planned on the host.

    Attributes:
        plan: Its tokens' layout.
        inputs: ``[T]`` token ids in packed order; or, of a pass that continues another, which of that one's tokens each
            of its own is.
        logit_rows: Packed positions whose logits are wanted, padded by repeating the last; None for none.
        takes_first_rows: Whether they are 0, 1, 2...
    """

    plan: StepPlan
    inputs: IntArray
    logit_rows: IntArray | None
    takes_first_rows: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward, ready to run: a ``PlannedPass`` on the device."""

    layout: StepLayout
    inputs: torch.Tensor
    logit_rows: torch.Tensor | None
    takes_first_rows: bool


class ModelRunner:
    """Packed tokens in, logits of chosen rows out."""

    def __init__(self, decoder: Decoder, cache_config: CacheConfig) -> None:
        decoder.pack()
        self.decoder = decoder
        self._device = decoder.device
        self.vocab_size = decoder.vocab_size
        self.num_embeddings = decoder.num_embeddings
        self.cache = PagedKVCache(decoder.geometry, cache_config, decoder.dtype, decoder.device)
        # Whether an operator has ended when it returns. Elsewhere timing one would need a barrier after it.
        self.is_synchronous = decoder.device.type == "cpu"
        self._clock = AttentionClock() if self.is_synchronous else None

    def plan(self, slices: Sequence[TokenSlice]) -> StepPlan:
        """Pack slices for this model's cache."""
        return plan_step(
            slices,
            self.cache.geometry,
            self.cache.block_size,
            num_heads=self.decoder.num_heads,
            is_native=self.decoder.native is not None,
            spare_block=self.cache.num_blocks if self.cache.is_on_directml else None,
        )

    def prepare(self, plan: StepPlan, tokens: Sequence[Sequence[int]], logit_rows: Sequence[int]) -> PlannedPass:
        """A pass over tokens that the host knows.

        Args:
            plan: From ``plan``.
            tokens: Those of each input slice.
            logit_rows: Packed positions whose logits are wanted.
        """
        packed = [token for index in plan.order for token in tokens[index]]
        return _planned(plan, packed, logit_rows)

    def continue_pass(self, plan: StepPlan, sources: Sequence[int]) -> PlannedPass:
        """A pass over one token a slice which another pass leaves on the device. Its logits come in the slices' order.

        Args:
            plan: From ``plan``.
            sources: For each input slice, which of the other's tokens is its own.
        """
        packed = [sources[index] for index in plan.order]
        return _planned(plan, packed, plan.offsets)

    def upload(self, passes: Sequence[PlannedPass]) -> list[Pass]:
        """Bring passes to the device in one copy."""
        arrays: list[IntArray] = []
        for one in passes:
            arrays += (*one.plan.arrays(), one.inputs)
            if one.logit_rows is not None:
                arrays.append(one.logit_rows)
        uploaded = iter(upload(arrays, self._device))
        return [
            Pass(
                one.plan.on_device(uploaded),
                next(uploaded),
                None if one.logit_rows is None else next(uploaded),
                takes_first_rows=one.takes_first_rows,
            )
            for one in passes
        ]

    def take_attention_seconds(self) -> float:
        """Time spent in attention since the last call; 0.0 where it cannot be told."""
        return 0.0 if self._clock is None else self._clock.take()

    def forward(
        self, plan: StepPlan, tokens: Sequence[Sequence[int]], logit_rows: Sequence[int]
    ) -> torch.Tensor | None:
        """Run a pass over tokens that the host knows. See ``prepare`` and ``run``."""
        (ready,) = self.upload([self.prepare(plan, tokens, logit_rows)])
        return self.run(ready)

    def run(self, ready: Pass, tokens: torch.Tensor | None = None) -> torch.Tensor | None:
        """Run the model over one packed step and write its keys and values.

        Args:
            ready: From ``upload``.
            tokens: What the other pass left, for one that continues it.

        Returns:
            ``[padded_rows(number of logit rows), vocab_size]`` on the device, the last row repeated; or None when no
            row is wanted.
        """
        tokens = ready.inputs if tokens is None else tokens.index_select(0, ready.inputs)
        # [T, hidden_size], and padding
        hidden = self.decoder.forward(tokens, ready.layout, self.cache, self._clock)
        rows = ready.logit_rows
        if rows is None:
            return None
        if not (ready.takes_first_rows and len(rows) == hidden.shape[0]):
            hidden = hidden.index_select(0, rows)
        return self.decoder.logits(hidden)


def _planned(plan: StepPlan, packed: Sequence[int], logit_rows: Sequence[int]) -> PlannedPass:
    """Pad inputs with zeros to what the plan does, and rows to what the head's product is asked for."""
    padding = len(plan.positions) - len(packed)
    inputs = np.asarray([*packed, *[0] * padding] if padding else packed, dtype=np.int64)
    if not logit_rows:
        return PlannedPass(plan, inputs, None, takes_first_rows=False)
    count = len(logit_rows)
    rows = [*logit_rows, *[logit_rows[-1]] * (padded_rows(count) - count)]
    return PlannedPass(plan, inputs, np.asarray(rows, dtype=np.int64), takes_first_rows=rows == list(range(len(rows))))
