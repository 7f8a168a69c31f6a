"""ModelRunner: one decoder with its paged cache; the only caller of a model's forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from helix_jobs.engine.attention.clock import AttentionClock
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.attention.rotary import rotary_rows
from helix_jobs.engine.config import StateConfig
from helix_jobs.engine.devices.devices import compiles_each_shape, has_dear_waits
from helix_jobs.engine.devices.shape_sizes import padded_rows, token_size
from helix_jobs.engine.model.adapter_plan import AdapterPlan
from helix_jobs.engine.model.upload import upload
from helix_jobs.engine.recurrence.state_cache import StateCache
from helix_jobs.engine.recurrence.state_plan import plan_states

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from helix_jobs.engine.attention.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.attention.step_plan import StepPlan
    from helix_jobs.engine.cache_sections import LayerSections
    from helix_jobs.engine.config import CacheConfig
    from helix_jobs.engine.model.decoder import Decoder

    IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlannedPass:
    """One forward, planned on the host.

    Attributes:
        plan: Layout of its tokens.
        inputs: ``[T]`` token ids in packed order. In a pass that continues others: the index of each token among
            ``known`` followed by the tokens that the other passes leave on the device.
        known: ``[T]`` tokens that the host knows, if the pass continues others and there are any.
        logit_rows: Packed positions whose logits are wanted, padded by repeating the last; None for none.
        takes_first_rows: Whether ``logit_rows`` are 0, 1, 2...
    """

    plan: StepPlan
    inputs: IntArray
    known: IntArray | None
    logit_rows: IntArray | None
    takes_first_rows: bool

    def arrays(self) -> list[IntArray]:
        """The arrays to upload."""
        given = (array for array in (self.known, self.logit_rows) if array is not None)
        return [*self.plan.arrays(), self.inputs, *given]

    def on_device(self, uploaded: Iterator[torch.Tensor]) -> Pass:
        """Make the pass from the uploaded ``arrays``."""
        return Pass(
            self.plan.on_device(uploaded),
            next(uploaded),
            None if self.known is None else next(uploaded),
            None if self.logit_rows is None else next(uploaded),
            takes_first_rows=self.takes_first_rows,
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward, ready to run: a ``PlannedPass`` on the device."""

    layout: StepLayout
    inputs: torch.Tensor
    known: torch.Tensor | None
    logit_rows: torch.Tensor | None
    takes_first_rows: bool


class ModelRunner:
    """Packed tokens in, logits of chosen rows out.

    Args:
        decoder: The model.
        cache_config: Size of its cache of keys and values.
        state_config: Size of its cache of states, if it has recurrent layers; None for the smallest.
        sections: The sections of its layers; None for one that keeps every block.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache_config: CacheConfig,
        state_config: StateConfig | None = None,
        sections: LayerSections | None = None,
    ) -> None:
        decoder.pack()
        self.decoder = decoder
        self._device = decoder.device
        self.vocab_size = decoder.vocab_size
        self.num_embeddings = decoder.num_embeddings
        self.cache = PagedKVCache(decoder.geometry, cache_config, decoder.dtype, decoder.device, sections)
        shapes = [one.shape for one in decoder.recurrences]
        self.states = (
            StateCache(shapes, state_config or StateConfig(num_slots=1), decoder.dtype, decoder.device)
            if shapes
            else None
        )
        # Whether an operator has finished when its call returns. If not, timing one would need a barrier after it.
        self.is_synchronous = decoder.device.type == "cpu"
        self.has_dear_waits = has_dear_waits(decoder.device)
        self._repeats = compiles_each_shape(decoder.device)
        self._padded_rows = token_size if self._repeats else padded_rows
        self._clock = AttentionClock() if self.is_synchronous else None

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys, values and states."""
        return self.cache.num_bytes + (0 if self.states is None else self.states.num_bytes)

    def plan(self, slices: Sequence[TokenSlice], least_tokens: int = 0) -> StepPlan:
        """Pack slices for this model's cache. See ``AttentionBackend.plan``."""
        attention, num_sections = self.decoder.attention, len(self.cache.sections.windows)
        plan, *further = [attention.plan(slices, self.cache, least_tokens, section) for section in range(num_sections)]
        original = attention.spec.original_context
        if original is not None:
            rows = rotary_rows(slices, plan, original)
            plan, *further = [replace(one, rotary_rows=rows) for one in (plan, *further)]
        if further:
            assert all(one.order == plan.order for one in further), "sections pack tokens alike"
            plan = replace(plan, further=tuple(further))
        switch = self.decoder.adapters
        if switch is not None and any(one.adapter for one in slices):
            adapters = AdapterPlan.of(slices, plan, switch.num_adapters, repeats=self._repeats)
            plan = replace(plan, adapters=adapters)
        if self.states is None:
            return plan
        return replace(plan, states=plan_states(slices, plan.offsets, len(plan.positions), self.states))

    def prepare(self, plan: StepPlan, tokens: Sequence[Sequence[int]], logit_rows: Sequence[int]) -> PlannedPass:
        """A pass over tokens that the host knows.

        Args:
            plan: From ``plan``.
            tokens: The tokens of each input slice.
            logit_rows: Packed positions whose logits are wanted.
        """
        packed = [token for index in plan.order for token in tokens[index]]
        return self._planned(plan, packed, logit_rows)

    def prepare_behind(
        self,
        plan: StepPlan,
        tokens: Sequence[Sequence[int]],
        sources: Sequence[Sequence[int]],
        logit_rows: Sequence[int],
    ) -> PlannedPass:
        """A pass over slices whose first tokens the host knows; other passes leave the rest on the device.

        Args:
            plan: From ``plan``.
            tokens: The known tokens of each input slice.
            sources: For each input slice, which tokens of the other passes follow the known ones.
            logit_rows: Packed positions whose logits are wanted.
        """
        num_inputs = len(plan.positions)
        known: list[int] = []
        inputs: list[int] = []
        for index in plan.order:
            inputs += range(len(known), len(known) + len(tokens[index]))
            inputs += (num_inputs + source for source in sources[index])
            known += [*tokens[index], *[0] * len(sources[index])]
        known += [0] * (num_inputs - len(known))
        return self._planned(plan, inputs, logit_rows, known)

    def continue_pass(self, plan: StepPlan, sources: Sequence[int], least_rows: int = 0) -> PlannedPass:
        """A pass over one token a slice, left on the device by another pass. Its logits are in the slices' order.

        Args:
            plan: From ``plan``.
            sources: For each input slice, which token of the other pass it takes.
            least_rows: The least number of rows that logits are padded to.
        """
        packed = [sources[index] for index in plan.order]
        rows = [*plan.offsets, *plan.offsets[-1:] * (least_rows - len(plan.offsets))]
        return self._planned(plan, packed, rows)

    def upload(self, passes: Sequence[PlannedPass]) -> list[Pass]:
        """Upload passes in one copy; they may include passes of other models on the same device."""
        uploaded = iter(upload([array for one in passes for array in one.arrays()], self._device))
        return [one.on_device(uploaded) for one in passes]

    def take_attention_seconds(self) -> float:
        """Time spent in attention since the last call; 0.0 where it cannot be measured."""
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
            tokens: Tokens that other passes left, for a pass that continues them.

        Returns:
            ``[number of logit rows and padding, vocab_size]`` on the device, the last row repeated; or None when no row
            is wanted.
        """
        if tokens is None:
            tokens = ready.inputs
        else:
            given = tokens if ready.known is None else torch.cat((ready.known, tokens))
            tokens = given.index_select(0, ready.inputs)
        if self.decoder.adapters is not None:
            self.decoder.adapters.rows = ready.layout.adapters
        # [T, hidden_size], and padding
        hidden = self.decoder.forward(tokens, ready.layout, self.cache, self._clock, self.states)
        rows = ready.logit_rows
        if rows is None:
            return None
        if not (ready.takes_first_rows and len(rows) == hidden.shape[0]):
            hidden = hidden.index_select(0, rows)
        return self.decoder.logits(hidden)

    def _planned(
        self, plan: StepPlan, packed: Sequence[int], logit_rows: Sequence[int], known: Sequence[int] | None = None
    ) -> PlannedPass:
        """Pad inputs with zeros to the plan's length, and rows to the number that the head's product takes."""
        padding = len(plan.positions) - len(packed)
        inputs = np.asarray([*packed, *[0] * padding] if padding else packed, dtype=np.int64)
        given = None if known is None else np.asarray(known, dtype=np.int64)
        if not logit_rows:
            return PlannedPass(plan, inputs, given, None, takes_first_rows=False)
        count = len(logit_rows)
        rows = [*logit_rows, *[logit_rows[-1]] * (self._padded_rows(count) - count)]
        takes_first_rows = rows == list(range(len(rows)))
        return PlannedPass(plan, inputs, given, np.asarray(rows, dtype=np.int64), takes_first_rows=takes_first_rows)
