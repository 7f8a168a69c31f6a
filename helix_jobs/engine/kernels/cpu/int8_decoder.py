"""NativeInt8Decoder: all layers of an int8 decoder over a few tokens in one call of compiled code."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from helix_jobs.engine.attention.features import features_of
from helix_jobs.engine.kernels.cpu.attention import DirectSlices, scoring
from helix_jobs.engine.kernels.cpu.int8_matrix import Int8Matrix, MatrixStruct
from helix_jobs.engine.kernels.cpu.kernels import LANES
from helix_jobs.engine.model.activations import ACTIVATIONS
from helix_jobs.engine.model.feed_forward import GatedFeedForward
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.weights.int8_linear import Int8Linear, packs_int8

if TYPE_CHECKING:
    from helix_jobs.engine.attention.clock import AttentionClock
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.weights.linear import Linear

# Trade-off: beyond this many tokens oneDNN's products, which reuse each weight for many tokens, are worth the calls
# between them.
MAX_TOKENS: Final = 6

# The features of a layer's attention that compiled code computes, see ``features_of``; of the layer itself, none.
_SERVED: Final = frozenset({"query_norm", "key_norm", "rotary", "window", "score_cap"})

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_NUM_POOLS: Final = 4  # keys, values and their scales


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, MatrixStruct) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("key_scales", _POINTER),
        ("value_scales", _POINTER),
        ("scaling", ctypes.c_float),
        ("cap", ctypes.c_float),
        ("window", _SIZE),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *(
            (name, _SIZE)
            for name in (
                "num_layers",
                "hidden_size",
                "heads",
                "kv_heads",
                "rotary_dim",
                "block_size",
                "intermediate_size",
            )
        ),
        ("eps", ctypes.c_float),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("tokens", _SIZE),
        ("num_pieces", _SIZE),
        *((name, _POINTER) for name in ("positions", "write_rows", "pieces", "blocks", "cos", "sin")),
        ("attention_seconds", ctypes.POINTER(ctypes.c_double)),
    )


class NativeInt8Decoder:
    """The layers of one decoder, described to compiled code (satisfies ``SmallSteps``).

    ``supports`` says which decoders compiled code can run.

    Holds the weights row by row, beside those that oneDNN has packed for larger steps. Trade-off: with packed weights
    the layers of an int8 model are in memory twice, which ``ModelPair`` reckons. In return a product of a token takes
    between a half and two thirds of oneDNN's time, and one of 32 tokens does not take three to five times as long as
    it would over rows.
    """

    def __init__(self, decoder: Decoder, native: NativeKernels) -> None:
        self._layers = decoder.layers  # not the decoder, whose head would be in memory twice
        self._spec = decoder.attention.spec
        self._run = native.int8_layers
        # Every object that compiled code has a pointer to.
        self._kept: list[torch.Tensor] = []
        self._nbytes = 0
        self._matrices = [tuple(self._matrix(one) for one in layer.linears()) for layer in decoder.layers]
        self._cache: PagedKVCache | None = None
        self._model: _Model | None = None

    @staticmethod
    def supports(decoder: Decoder, native: NativeKernels) -> bool:
        """Whether compiled code can run this model on this processor."""
        spec = decoder.attention.spec
        norms = [norm for layer in decoder.layers for norm in (layer.attention_norm, layer.feed_forward_norm)]
        head_norms = [norm for layer in spec.layers for norm in (layer.query_norm, layer.key_norm) if norm is not None]
        return (
            native.has_byte_products
            and not spec.geometry.features
            and len(spec.rotaries) == 1
            and all(features_of(own) <= _SERVED and own.rotary is not None for own in spec.layers)
            and not any(features_of(layer) for layer in decoder.layers)
            and all(
                isinstance(layer.feed_forward, GatedFeedForward) and layer.feed_forward.activation is functional.silu
                for layer in decoder.layers
            )
            and all(isinstance(linear, Int8Linear) and linear.rows is not None for linear in decoder.linears())
            and all(isinstance(norm, RmsNorm) and norm.weight.dtype == decoder.dtype for norm in (*norms, *head_norms))
            and len({norm.eps for norm in (*norms, *head_norms) if isinstance(norm, RmsNorm)}) == 1
        )

    @staticmethod
    def describes(model: ModelDescription) -> bool:
        """Whether ``supports`` will hold for the int8 form of such a model, where the processor multiplies bytes."""
        attentions = model.attentions
        norms = [norm for layer in model.layers for norm in (layer.attention_norm, layer.feed_forward_norm)]
        norms += [norm for own in attentions for norm in (own.query_norm, own.key_norm) if norm is not None]
        return (
            len(attentions) == len(model.layers)
            and not model.geometry.features
            and max(model.geometry.head_dims) % LANES == 0
            and len({own.rotary for own in attentions}) == 1
            and all(features_of(own) <= _SERVED | {"is_grouped"} and own.rotary is not None for own in attentions)
            and not any(features_of(layer) for layer in model.layers)
            and all(
                layer.feed_forward is not None
                and layer.feed_forward.is_gated
                and ACTIVATIONS.get(layer.feed_forward.activation) is functional.silu
                for layer in model.layers
            )
            # A norm with an offset is kept in float32, see ``StoredParts``.
            and all(norm is not None and norm.kind == "rms" and norm.offset == 0.0 for norm in norms)
            and len({norm.eps for norm in norms if norm is not None}) == 1
        )

    @property
    def nbytes(self) -> int:
        """See ``SmallSteps``."""
        return self._nbytes

    @staticmethod
    def serves(layout: StepLayout, cache: PagedKVCache) -> bool:
        """Whether this way through a step is correct and faster.

        The compiled code knows one section of layers, and the model's own weights, no adapters.

        The compiled code attends for a slice as soon as it has written that slice's keys and values. The draft model's
        slices may read what another slice writes in the same step. Such slices share a whole block and have a token
        each behind it, so they never fit into a step of at most a block's tokens.
        """
        is_plain = not layout.further and layout.adapters is None
        return is_plain and layout.num_tokens <= min(MAX_TOKENS, cache.block_size)

    def forward(
        self, hidden: torch.Tensor, layout: StepLayout, cache: PagedKVCache, clock: AttentionClock | None = None
    ) -> torch.Tensor:
        """Run every layer.

        Args:
            hidden: ``[T, hidden_size]``, the embedded tokens.
            layout: The step; ``serves`` it.
            cache: The model's own; keys and values of the step are written.
            clock: Sums up the time spent in attention.

        Returns:
            ``[T, hidden_size]``, the last layer's output.
        """
        (rotary,), direct = self._spec.rotaries, layout.attention
        (write_rows,) = layout.write_rows.values()
        assert isinstance(direct, DirectSlices), "the step was planned for another backend"
        if self._model is None or self._cache is not cache:
            self._model, self._cache = self._describe(cache), cache
        cos, sin = rotary.tables(layout.num_positions)
        seconds = ctypes.c_double(0.0)
        step = _Step(
            layout.num_tokens, len(direct.pieces), rotary.rows(layout).data_ptr(), write_rows.data_ptr(),
            direct.pieces.data_ptr(), direct.blocks.data_ptr(), cos.data_ptr(), sin.data_ptr(),
            ctypes.pointer(seconds),
        )  # fmt: skip
        # [T, hidden_size]
        exact = hidden.to(torch.float32, copy=True)
        self._run(ctypes.byref(self._model), ctypes.byref(step), exact.data_ptr())
        if clock is not None:
            clock.add(seconds.value)
        return exact.to(hidden.dtype)

    def _describe(self, cache: PagedKVCache) -> _Model:
        spec = self._spec
        layers = (_Layer * len(self._layers))()
        for index, (layer, own, matrices) in enumerate(zip(self._layers, spec.layers, self._matrices, strict=True)):
            norms = [
                self._norm(one) for one in (layer.attention_norm, own.query_norm, own.key_norm, layer.feed_forward_norm)
            ]
            pools = cache.pools_of(index)
            pointers = [one.data_ptr() for one in pools] + [None] * (_NUM_POOLS - len(pools))
            layers[index] = _Layer(*norms, *matrices, *pointers, *scoring(own))
        first = self._layers[0]
        products = first.linears()
        assert isinstance(first.attention_norm, RmsNorm), "supports() asks for RMS norms"
        return _Model(
            ctypes.cast(layers, ctypes.POINTER(_Layer)), len(self._layers), products[0].in_features, spec.num_heads,
            spec.geometry.layers[0].num_kv_heads, spec.rotaries[0].rotary_dim, cache.block_size,
            products[-1].in_features, first.attention_norm.eps,
        )  # fmt: skip

    def _norm(self, norm: Any) -> int | None:  # noqa: ANN401  (an RmsNorm or None, as supports() asks)
        if norm is None:
            return None
        weight = norm.weight.contiguous()
        self._kept.append(weight)
        return int(weight.data_ptr())

    def _matrix(self, linear: Linear) -> MatrixStruct:
        assert isinstance(linear, Int8Linear), "supports() asks for int8 layers"
        assert linear.rows is not None, "supports() asks for weights not packed yet"
        matrix = Int8Matrix.of(linear.rows, linear.scale, linear.bias)
        self._kept += matrix.kept
        self._nbytes += matrix.sum_bytes + (linear.rows.nbytes if packs_int8() else 0)
        return matrix.struct
