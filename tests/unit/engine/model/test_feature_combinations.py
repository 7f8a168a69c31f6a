"""Random combinations of features equal a decoder written plainly, in every attention of the CPU."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from types import NoneType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
from helix_jobs.engine.attention.cache_geometry import CacheGeometry, CacheShape
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.query_factor import QueryFactor
from helix_jobs.engine.attention.rotary import RotaryTable
from helix_jobs.engine.attention.sdpa import SdpaAttention
from helix_jobs.engine.kernels.cpu.kernels import load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.model.decoder import Decoder
from helix_jobs.engine.model.decoder_layer import DecoderLayer
from helix_jobs.engine.model.expert_description import RouterDescription
from helix_jobs.engine.model.experts import Experts
from helix_jobs.engine.model.feed_forward import GatedFeedForward, NoFeedForward
from helix_jobs.engine.model.layer_inputs import LayerInput, LayerInputs
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.model.router import Router
from helix_jobs.engine.recurrence.delta_rule import DeltaHeads, DeltaRule
from helix_jobs.engine.recurrence.mamba2 import Mamba2, MambaHeads
from helix_jobs.engine.recurrence.selective_scan import SelectiveScan
from helix_jobs.engine.recurrence.short_conv import ShortConv
from helix_jobs.engine.weights.linear import DenseLinear
from helix_jobs.engine.weights.router_linear import RouterLinear
from tests.unit.engine.model.plain_decoder import plain_logits
from tests.unit.engine.model.plain_recurrences import PlainDeltaRule, PlainMamba2, PlainSelectiveScan, PlainShortConv
from tests.unit.engine.tiny_models import CPU, ragged_logits

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.recurrence.recurrence import Recurrence
    from tests.unit.engine.model.plain_recurrences import PlainRecurrence

SEEDS = range(24)
EXPERTS = 6
VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDE_DIM, INNER, INPUT = 23, 24, 4, 2, 16, 32, 40, 6
FREQUENCIES = 10.0 ** -torch.arange(6, dtype=torch.float32)[:5]  # of each head six dimensions are not rotated
GROWTH = (0.4, 8)
LENGTHS = (1, 7, 26)


class Maker:
    """Draws parts; each feature is there in about a third of the layers."""

    def __init__(self, seed: int) -> None:
        self._choice = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._rotaries = {
            width: RotaryTable(FREQUENCIES, 1.0, width, torch.float32, CPU) for width in (HEAD_DIM, WIDE_DIM)
        }
        self._factor = QueryFactor(*GROWTH, torch.float32, CPU)
        # See ``plain_logits``; and the parts, which have to live as long as their ids are in use.
        self.weights: dict[int, Any] = {}
        self._parts: list[Any] = []

    def floats(self, *shape: int, scale: float = 0.4) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator) * scale

    def maybe(self, value: Any, otherwise: Any = None) -> Any:
        return value if self._choice.random() < 0.35 else otherwise

    def norm(self, size: int) -> RmsNorm:
        return RmsNorm(1 + self.floats(size), 1e-5)

    def linear(self, rows: int, columns: int) -> DenseLinear:
        return DenseLinear(self.floats(rows, columns), self.maybe(self.floats(rows)))

    def geometry(self) -> CacheGeometry:
        """Half of the models have layers of one shape; the last layer may read another's keys and values."""
        usual = CacheShape(num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        other = CacheShape(num_kv_heads=1, head_dim=WIDE_DIM)
        is_mixed = self._choice.random() < 0.5
        if is_mixed:
            width = self.maybe(self._choice.choice((8, 24)))
            other = replace(other, value_dim=width, has_values=self.maybe(value=False, otherwise=True))
        shapes = [usual, self._choice.choice((usual, other)) if is_mixed else usual]
        source = self._choice.choice((None, 0, 1))
        shapes.append(usual if source is None else replace(shapes[source], source=source))
        return CacheGeometry(layers=tuple(shapes))

    def attention(self, shape: CacheShape) -> LayerAttention:
        scope = self._choice.choice(("head", "row", "rotated"))
        width = shape.head_dim
        widths = (HEADS * width, shape.num_kv_heads * width) if scope == "row" else (width, width)
        is_plain = shape.source is None and shape.value_dim is None and shape.has_values
        norms = self.maybe(tuple(map(self.norm, widths)), (None, None))
        return LayerAttention(
            scaling=self._choice.choice((0.25, 0.1)),
            query_norm=norms[0],
            key_norm=norms[1] if shape.source is None else None,
            norm_scope="head" if norms[0] is None else scope,
            rotary=self.maybe(None, self._rotaries[width]),
            window=self.maybe(self._choice.choice((1, 5, 11))),
            score_cap=self.maybe(1.5),
            clip=self.maybe(0.8),
            query_factor=self.maybe(self._factor),
            sinks=self.maybe(self.floats(HEADS, scale=1.0)),
            value_norm=self.maybe(self.norm(shape.value_width)) if shape.source is None else None,
            has_values_of_keys=self.maybe(value=is_plain, otherwise=False),
        )

    def layer(self, own: LayerAttention, shape: CacheShape, *, has_input: bool) -> DecoderLayer:
        kept = shape.num_new_heads * (shape.head_dim + (0 if own.has_values_of_keys else shape.stored_value_width))
        has_gate = self.maybe(value=True, otherwise=False)
        width, out = HEADS * shape.head_dim + kept, HEADS * shape.value_width
        width += out if has_gate else 0
        beside = self.maybe(value=True, otherwise=False)
        if not beside:
            return replace(self.block(width, out, has_input=has_input), has_gate=has_gate)
        recurrence = self.recurrence()
        block = self.block(width + recurrence.inputs, out + recurrence.outputs, has_input=has_input)
        return self.recurrent(block, recurrence, has_gate=has_gate, attention_width=width)

    def recurrent_layer(self, *, has_input: bool) -> DecoderLayer:
        recurrence = self.recurrence()
        block = self.block(recurrence.inputs, recurrence.outputs, has_input=has_input)
        return self.recurrent(block, recurrence)

    def recurrent(self, block: DecoderLayer, recurrence: PlainRecurrence, **settings: Any) -> DecoderLayer:
        """The block with a recurrence. It always has a norm: products of three inputs would grow without bound."""
        norm = block.attention_norm or self.norm(HIDDEN)
        return replace(block, attention_norm=norm, recurrence=self.kept(recurrence), **settings)

    def kept(self, recurrence: PlainRecurrence) -> Recurrence:
        made = recurrence.made()
        self._parts.append(made)
        self.weights[id(made)] = recurrence
        return made

    def recurrence(self) -> PlainRecurrence:
        kind = self._choice.choice(("conv", "delta", "mamba", "scan"))
        if kind == "conv":
            return PlainShortConv(self.floats(3, HIDDEN), self.maybe(self.floats(HIDDEN)))
        if kind == "delta":
            heads = DeltaHeads(num_key_heads=2, num_value_heads=4, key_dim=4, value_dim=6)
            return PlainDeltaRule(
                heads,
                taps=self.floats(4, sum(heads.widths)),
                decay=self.floats(4),
                decay_bias=self.floats(4),
                norm=1 + self.floats(6),
                rate_scale=self.maybe(2.0, 1.0),
            )
        if kind == "scan":
            return PlainSelectiveScan(
                taps=self.floats(3, 12),
                taps_bias=self.maybe(self.floats(12)),
                matrix=self.floats(3 + 2 * 5, 12),
                steps=self.floats(12, 3),
                step_bias=self.floats(12),
                norms=(1 + self.floats(3), 1 + self.floats(5), 1 + self.floats(5)),
                decay=self.floats(12, 5),
                skip=self.floats(12),
            )
        shape = MambaHeads(num_heads=4, head_dim=6, num_groups=2, state_dim=5)
        return PlainMamba2(
            shape,
            taps=self.floats(3, sum(shape.widths)),
            taps_bias=self.maybe(self.floats(sum(shape.widths))),
            decay=self.floats(4),
            step_bias=self.floats(4),
            skip=self.floats(4),
            norm=self.maybe(None, 1 + self.floats(shape.width)),
            is_gated_last=self.maybe(value=True, otherwise=False),
        )

    def feed_forward(self) -> FeedForward:
        def gated() -> GatedFeedForward:
            return GatedFeedForward(self.linear(2 * INNER, HIDDEN), self.linear(HIDDEN, INNER), functional.silu)

        kind = self._choice.choice(("gated", "gated", "experts", "none"))
        if kind == "none":
            return NoFeedForward()
        if kind == "gated":
            return gated()
        score = self._choice.choice(("softmax", "sigmoid", "selected", "mixed"))
        has_groups = score in {"softmax", "sigmoid"} and self._choice.random() < 0.5
        rule = RouterDescription(
            weight="",
            top_k=2,
            score=score,
            jitter=self._choice.choice((0.02, 0.4)),
            chooses_by_logits=score == "sigmoid" and self._choice.random() < 0.5,
            num_groups=2 if has_groups else 1,
            is_normalised=self.maybe(value=False, otherwise=True),
            sum_offset=self.maybe(0.1, 0.0),
            scale=1.0 if score == "mixed" else self.maybe(1.7, 1.0),
        )
        weight = self.floats(EXPERTS, HIDDEN, scale=1.0)
        has_correction = score in {"softmax", "sigmoid"}
        router = Router(
            RouterLinear(weight), self.maybe(self.floats(EXPERTS)) if has_correction else None, rule, torch.float32
        )
        self._parts.append(router)
        self.weights[id(router)] = weight
        return Experts(router, tuple(gated() for _ in range(EXPERTS)), self.maybe(gated()))

    def block(self, width: int, out: int, *, has_input: bool) -> DecoderLayer:
        """A layer around what reads ``width`` numbers of a token and yields ``out``."""
        is_parallel = self.maybe(value=True, otherwise=False)
        return DecoderLayer(
            attention_norm=self.maybe(None, self.norm(HIDDEN)),
            qkv=self.linear(width, HIDDEN),
            attention_out=self.linear(HIDDEN, out),
            feed_forward_norm=self.maybe(None, self.norm(HIDDEN)),
            feed_forward=self.feed_forward(),
            attention_out_norm=self.maybe(self.norm(HIDDEN)),
            feed_forward_out_norm=self.maybe(self.norm(HIDDEN)),
            residual_scale=self.maybe(0.4, 1.0),
            is_parallel=is_parallel,
            layer_input=self.layer_input() if has_input else None,
            scale=self.maybe(1.4, 1.0),
        )

    def layer_input(self) -> LayerInput:
        return LayerInput(
            gate=self.linear(INPUT, HIDDEN),
            projection=self.linear(HIDDEN, INPUT),
            norm=self.norm(HIDDEN),
            activation=functional.silu,
        )

    def layer_inputs(self, num_layers: int) -> LayerInputs:
        return LayerInputs(
            table=self.floats(VOCAB, num_layers * INPUT),
            projection=self.linear(num_layers * INPUT, HIDDEN),
            norm=self.norm(INPUT),
            width=INPUT,
            table_scale=2.0,
            projection_scale=0.2,
        )

    def decoder(self) -> Decoder:
        geometry = self.geometry()
        layers = tuple(map(self.attention, geometry.layers))
        spec = AttentionSpec(geometry=geometry, num_heads=HEADS, layers=layers)
        has_inputs = self._choice.random() < 0.35
        blocks: list[DecoderLayer] = []
        for own, shape in zip(layers, geometry.layers, strict=True):
            if self._choice.random() < 0.35:
                blocks.append(self.recurrent_layer(has_input=has_inputs))
            blocks.append(self.layer(own, shape, has_input=has_inputs))
        return Decoder(
            attention=DenseAttention(spec),
            embedding=self.floats(VOCAB, HIDDEN, scale=1.0),
            layers=tuple(blocks),
            final_norm=self.norm(HIDDEN),
            head=self.linear(VOCAB, HIDDEN),
            dtype=torch.float32,
            device=CPU,
            embedding_scale=self.maybe(2.5, 1.0),
            embedding_norm=self.maybe(self.norm(HIDDEN)),
            position_embedding=self.maybe(self.floats(max(LENGTHS), HIDDEN)),
            logit_scale=self.maybe(0.3, 1.0),
            logit_cap=self.maybe(2.0),
            layer_inputs=self.layer_inputs(len(blocks)) if has_inputs else None,
        )


def test_the_seeds_draw_every_part() -> None:
    decoders = [Maker(seed).decoder() for seed in SEEDS]
    layers = [layer for decoder in decoders for layer in decoder.layers]
    routers = [layer.feed_forward.router for layer in layers if isinstance(layer.feed_forward, Experts)]
    assert {router.rule.score for router in routers} == {"softmax", "sigmoid", "selected", "mixed"}
    assert {router.rule.num_groups for router in routers} == {1, 2}
    assert {router.rule.chooses_by_logits for router in routers} == {False, True}
    recurrences = {(type(layer.recurrence), layer.attention_width > 0) for layer in layers}
    assert recurrences == {
        (NoneType, False),
        *itertools.product((ShortConv, DeltaRule, Mamba2, SelectiveScan), (False, True)),
    }
    assert {(layer.has_gate, layer.attention_width > 0) for layer in layers} == {
        *itertools.product((False, True), repeat=2)
    }
    sinks = {own.sinks is not None for decoder in decoders for own in decoder.attention.spec.layers}
    assert sinks == {False, True}


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_combination_equals_the_plain_decoder(compiled_folder: Path, seed: int) -> None:
    maker = Maker(seed)
    decoder = maker.decoder()
    prompts = [[(5 * i + seed + n) % VOCAB for i in range(n)] for n in LENGTHS]
    expected = [plain_logits(decoder, prompt, FREQUENCIES, GROWTH, maker.weights) for prompt in prompts]
    ways = [decoder, with_native(decoder, load_kernels(compiled_folder, torch.float32, CPU, HEAD_DIM))]
    spec = decoder.attention.spec
    if SdpaAttention.serves(spec):
        ways.append(replace(decoder, attention=SdpaAttention(spec)))
    for way in ways:
        for chunk in (6, 1000):
            for found, logits in zip(ragged_logits(way, prompts, chunk), expected, strict=True):
                torch.testing.assert_close(found.double(), logits, rtol=1e-3, atol=1e-3)
