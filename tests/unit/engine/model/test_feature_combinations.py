"""Random combinations of features equal a decoder written plainly, in every attention of the CPU."""

from __future__ import annotations

import random
from dataclasses import replace
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
from helix_jobs.engine.model.feed_forward import GatedFeedForward
from helix_jobs.engine.model.layer_inputs import LayerInput, LayerInputs
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.weights.linear import DenseLinear
from tests.unit.engine.model.plain_decoder import plain_logits
from tests.unit.engine.tiny_models import CPU, ragged_logits

if TYPE_CHECKING:
    from pathlib import Path

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
            value_norm=self.maybe(self.norm(shape.value_width)) if shape.source is None else None,
            has_values_of_keys=self.maybe(value=is_plain, otherwise=False),
        )

    def layer(self, own: LayerAttention, shape: CacheShape, *, has_input: bool) -> DecoderLayer:
        kept = shape.num_new_heads * (shape.head_dim + (0 if own.has_values_of_keys else shape.stored_value_width))
        is_parallel = self.maybe(value=True, otherwise=False)
        return DecoderLayer(
            attention_norm=self.maybe(None, self.norm(HIDDEN)),
            qkv=self.linear(HEADS * shape.head_dim + kept, HIDDEN),
            attention_out=self.linear(HIDDEN, HEADS * shape.value_width),
            feed_forward_norm=self.maybe(None, self.norm(HIDDEN)),
            feed_forward=GatedFeedForward(self.linear(2 * INNER, HIDDEN), self.linear(HIDDEN, INNER), functional.silu),
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
        return Decoder(
            attention=DenseAttention(spec),
            embedding=self.floats(VOCAB, HIDDEN, scale=1.0),
            layers=tuple(
                self.layer(own, shape, has_input=has_inputs) for own, shape in zip(layers, geometry.layers, strict=True)
            ),
            final_norm=self.norm(HIDDEN),
            head=self.linear(VOCAB, HIDDEN),
            dtype=torch.float32,
            device=CPU,
            embedding_scale=self.maybe(2.5, 1.0),
            embedding_norm=self.maybe(self.norm(HIDDEN)),
            position_embedding=self.maybe(self.floats(max(LENGTHS), HIDDEN)),
            logit_scale=self.maybe(0.3, 1.0),
            logit_cap=self.maybe(2.0),
            layer_inputs=self.layer_inputs(len(layers)) if has_inputs else None,
        )


@pytest.mark.parametrize("seed", range(24))
def test_a_random_combination_equals_the_plain_decoder(compiled_folder: Path, seed: int) -> None:
    decoder = Maker(seed).decoder()
    prompts = [[(5 * i + seed + n) % VOCAB for i in range(n)] for n in LENGTHS]
    expected = [plain_logits(decoder, prompt, FREQUENCIES, GROWTH) for prompt in prompts]
    ways = [decoder, with_native(decoder, load_kernels(compiled_folder, torch.float32, CPU, HEAD_DIM))]
    spec = decoder.attention.spec
    if SdpaAttention.serves(spec):
        ways.append(replace(decoder, attention=SdpaAttention(spec)))
    for way in ways:
        for chunk in (6, 1000):
            for found, logits in zip(ragged_logits(way, prompts, chunk), expected, strict=True):
                torch.testing.assert_close(found.double(), logits, rtol=1e-3, atol=1e-3)
