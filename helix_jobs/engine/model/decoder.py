"""Decoder: the forward pass of a decoder-only transformer over one packed, ragged step.

transformers loads the weights; its modules are not called. Trade-off: the forward has to be kept equal to the
reference for every family (the tests do so token by token), and in return it has fused projections, packed weights, no
work on padding, and no operator that a device lacks.

Each part is an object behind a protocol (attention, linear layers, norms, feed-forwards). A decoder does not ask which
implementation a part is: compiled kernels replace parts (see ``kernels.cpu.native_decoder``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional

from helix_jobs.engine.attention.section_steps import begin_step
from helix_jobs.engine.devices.shape_sizes import padded_rows
from helix_jobs.engine.model.mixers import Mixers
from helix_jobs.engine.recurrence.state_cache import state_bytes
from helix_jobs.engine.recurrence.state_step import StateStep
from helix_jobs.engine.weights.block_matrix import look_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.attention.backend import AttentionBackend
    from helix_jobs.engine.attention.cache_geometry import CacheGeometry
    from helix_jobs.engine.attention.clock import AttentionClock
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout
    from helix_jobs.engine.config import StateConfig
    from helix_jobs.engine.model.altup import Streams
    from helix_jobs.engine.model.decoder_layer import DecoderLayer
    from helix_jobs.engine.model.layer_inputs import LayerInputs
    from helix_jobs.engine.model.linear_origin import LinearOrigin
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.recurrence.recurrence import Recurrence
    from helix_jobs.engine.recurrence.state_cache import StateCache
    from helix_jobs.engine.weights.adapter_rows import AdapterSwitch
    from helix_jobs.engine.weights.block_matrix import Matrix
    from helix_jobs.engine.weights.linear import Linear


class Kernels(Protocol):
    """Compiled code that parts of a decoder compute with."""

    @property
    def name(self) -> str:
        """What results call it."""


class SmallSteps(Protocol):
    """A faster way through all layers at once, for steps of few tokens."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes beside the layers' own, once these are packed."""

    def serves(self, layout: StepLayout, cache: PagedKVCache) -> bool:
        """Whether this way through a step is correct and faster."""

    def forward(
        self, hidden: torch.Tensor, layout: StepLayout, cache: PagedKVCache, clock: AttentionClock | None = None
    ) -> torch.Tensor:
        """From the embedded tokens to the last layer's output, each ``[T, hidden_size]``. See ``Decoder.forward``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A whole model.

    Attributes:
        attention: Attention backend of all layers.
        embedding: ``[num_embeddings, hidden_size]``, in ``dtype`` or in blocks.
        layers: Layers, in order.
        final_norm: Norm after the last layer.
        head: Projection from the hidden size to the vocabulary.
        dtype: Dtype of activations.
        device: Device of all tensors.
        embedding_scale: Factor of the embedded tokens (Gemma).
        embedding_norm: Norm of the embedded tokens (nanochat), or None.
        position_embedding: ``[max_positions, hidden_size]`` learned positions (GPT-2), or None.
        logit_scale: Factor of the logits (Granite).
        logit_cap: Bound of the logits, ``cap * tanh(logits / cap)`` (Gemma 2), or None.
        layer_inputs: Makes the inputs of layers beside the residual (Gemma 4), or None.
        streams: Makes several residual streams (Gemma 3n), or None. Given exactly where each layer has ``altup``.
        origins: What each of ``linears()`` is made of, as far as adapters may change it. Whatever exchanges a linear
            layer puts another one of the same outputs into its place.
        adapters: The adapters of its products, or None.
        small_steps: A faster way through steps of few tokens, or None.
        native: The compiled kernels that its parts compute with, or None.
    """

    attention: AttentionBackend
    embedding: Matrix
    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    head: Linear
    dtype: torch.dtype
    device: torch.device
    embedding_scale: float = 1.0
    embedding_norm: Norm | None = None
    position_embedding: torch.Tensor | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None
    layer_inputs: LayerInputs | None = None
    streams: Streams | None = None
    origins: tuple[LinearOrigin | None, ...] = ()
    adapters: AdapterSwitch | None = None
    small_steps: SmallSteps | None = None
    native: Kernels | None = None

    @property
    def kernels(self) -> str:
        """The names of the kernels that it computes with, as results report them."""
        attention = self.attention.kernels
        if self.native is None or self.native.name == attention:
            return attention
        return f"{self.native.name}, attention {attention}"

    @property
    def geometry(self) -> CacheGeometry:
        """Shapes of its keys and values."""
        return self.attention.spec.geometry

    @property
    def table_bytes(self) -> int:
        """Bytes of what is looked up by token."""
        return self.embedding.nbytes + (0 if self.layer_inputs is None else self.layer_inputs.table.nbytes)

    @property
    def num_embeddings(self) -> int:
        """Token ids it can read."""
        return self.embedding.shape[0]

    @property
    def vocab_size(self) -> int:
        """Logits it yields."""
        return self.head.out_features

    def state_bytes(self, config: StateConfig) -> int:
        """Bytes of its cache of recurrent states; 0 without recurrent layers."""
        return state_bytes([one.shape for one in self.recurrences], config, self.dtype.itemsize)

    @property
    def recurrences(self) -> tuple[Recurrence, ...]:
        """Those of its recurrent layers, in order."""
        return tuple(layer.recurrence for layer in self.layers if layer.recurrence is not None)

    def linears(self) -> list[Linear]:
        """Every matrix product of a step, those of layers in order of execution, the head last."""
        first = () if self.layer_inputs is None else (self.layer_inputs.projection,)
        first = first if self.streams is None else (*first, *self.streams.linears())
        return [*first, *(linear for layer in self.layers for linear in layer.linears()), self.head]

    def with_linears(self, change: Callable[[Linear], Linear]) -> Decoder:
        """The same model with ``change`` applied to every linear layer, output head included."""
        inputs = self.layer_inputs
        return replace(
            self,
            layer_inputs=None if inputs is None else replace(inputs, projection=change(inputs.projection)),
            streams=None if self.streams is None else self.streams.with_linears(change),
            layers=tuple(layer.with_linears(change) for layer in self.layers),
            head=change(self.head),
        )

    def pack(self) -> None:
        """Lay the weights out for this device's kernels, once and for all."""
        for linear in self.linears():
            linear.pack()

    def forward(
        self,
        tokens: torch.Tensor,
        layout: StepLayout,
        cache: PagedKVCache,
        clock: AttentionClock | None = None,
        states: StateCache | None = None,
    ) -> torch.Tensor:
        """Run every layer over a packed step; its keys and values are in the cache afterwards.

        Args:
            tokens: ``[T]`` token ids in packed order.
            layout: The step.
            cache: This model's cache.
            clock: Sums up the time spent in attention.
            states: This model's states, if it has recurrent layers.

        Returns:
            ``[padded_rows(T), hidden_size]`` before the final norm. Pass only the rows whose logits are wanted on to
            ``logits``.
        """
        hidden = self._embedded(tokens, layout.positions)
        if self.small_steps is not None and self.small_steps.serves(layout, cache):
            return self.small_steps.forward(hidden, layout, cache, clock)
        recurrent = None if states is None else StateStep(layout.states, states)
        mixers = Mixers(begin_step(self.attention, layout, cache), recurrent, self.attention.spec)
        num_tokens = layout.num_tokens
        num_rows = padded_rows(num_tokens)
        hidden = _pad(hidden, num_rows)
        inputs = self.layer_inputs
        given = iter(()) if inputs is None else iter(inputs.of(_pad(inputs.look_up(tokens), num_rows), hidden))
        streams = None if self.streams is None else self.streams.expand(hidden)
        for layer in self.layers:
            if layer.altup is not None and streams is not None:
                streams = layer.altup.predict(streams)
                hidden = streams[:, layer.altup.active]
            normal = hidden if layer.attention_norm is None else layer.attention_norm(hidden)
            residual = hidden
            if layer.qkv is not None:
                qkv = layer.qkv(normal)
                if layer.query_lift is not None:
                    qkv = layer.query_lift(qkv)
                qkv = qkv.narrow(0, 0, num_tokens)
                if clock is not None:
                    clock.start()
                # [T, attention_out.in_features]
                attended = mixers.mix(layer, qkv)
                if clock is not None:
                    clock.stop()
                residual = layer.add_attention(hidden, _pad(attended, num_rows))
            if layer.altup is not None:
                residual = layer.altup.laurel.add_to(residual, normal)
            hidden = layer.add_feed_forward(residual, hidden, normal)
            if layer.altup is None or streams is None:
                hidden = layer.finished(hidden, next(given, None))
            else:
                streams = layer.altup.finished(streams, hidden, layer.layer_input, next(given, None))
        return hidden if self.streams is None or streams is None else self.streams.merge(streams)

    def _embedded(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What the first layer reads of tokens and positions, each ``[T]``: ``[T, hidden_size]``."""
        hidden = look_up(tokens, self.embedding, self.dtype)
        if self.embedding_scale != 1.0:
            hidden = hidden * self.embedding_scale
        if self.position_embedding is not None:
            # Only a draft may be asked beyond its own context, where any guess will do.
            positions = positions.clamp(max=len(self.position_embedding) - 1)
            hidden = hidden + functional.embedding(positions, self.position_embedding)
        if self.embedding_norm is not None:
            hidden = self.embedding_norm(hidden)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, vocab_size]`` of chosen rows ``[n, hidden_size]`` of what ``forward`` returned."""
        logits = self.head(self.final_norm(hidden))
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_cap is not None:
            logits = torch.tanh(logits / self.logit_cap) * self.logit_cap
        return logits


def _pad(rows: torch.Tensor, count: int) -> torch.Tensor:
    """``rows`` padded to ``count``. Every product works row by row, so the padding does not spread.

    The padding repeats the last row, so it needs no expert that the last row does not need.
    """
    missing = count - rows.shape[0]
    if missing == 0:
        return rows
    return torch.cat((rows, rows[-1:].expand(missing, -1)))
