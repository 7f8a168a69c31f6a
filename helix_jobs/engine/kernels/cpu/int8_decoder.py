"""NativeInt8Decoder: all layers of an int8 decoder over a few tokens in one call of compiled code."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from helix_jobs.engine.kernels.cpu.int8_matrix import Int8Matrix, MatrixStruct
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.weights.int8_linear import Int8Linear

if TYPE_CHECKING:
    from helix_jobs.engine.attention.dense import AttentionClock
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.weights.linear import Linear

# Trade-off: past so many tokens oneDNN's products, which reuse each weight for many tokens, are worth the calls between
# them.
MAX_TOKENS: Final = 6

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, MatrixStruct) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("scaling", ctypes.c_float),
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
    """The layers of one decoder, described to compiled code. ``supports`` says for which decoders there can be one.

    Holds the weights row by row, beside the packed ones that larger steps use where oneDNN has packed some. Trade-off:
    an int8 model takes its memory twice there, and a draft of a token or two costs what reading it once costs.
    """

    def __init__(self, decoder: Decoder, native: NativeKernels) -> None:
        self._decoder = decoder
        self._run = native.int8_layers
        # Whatever compiled code has a pointer to.
        self._kept: list[torch.Tensor] = []
        self._matrices = [
            tuple(self._matrix(one) for one in (layer.qkv, layer.attention_out, layer.mlp_in, layer.mlp_out))
            for layer in decoder.layers
        ]
        self._cache: PagedKVCache | None = None
        self._model: _Model | None = None

    @staticmethod
    def supports(decoder: Decoder, native: NativeKernels) -> bool:
        """Whether there is compiled code for such a model on this processor."""
        norms = [norm for layer in decoder.layers for norm in (layer.attention_norm, layer.mlp_norm)]
        norms += [norm for layer in decoder.layers for norm in (layer.query_norm, layer.key_norm) if norm is not None]
        return (
            native.has_byte_products
            and decoder.rotary is not None
            and decoder.is_gated
            and not decoder.has_parallel_residual
            and decoder.activation is functional.silu
            and all(isinstance(linear, Int8Linear) and linear.rows is not None for linear in decoder.linears())
            and all(isinstance(norm, RmsNorm) and norm.weight.dtype == decoder.dtype for norm in norms)
            and len({norm.eps for norm in norms if isinstance(norm, RmsNorm)}) == 1
        )

    @staticmethod
    def serves(layout: StepLayout, cache: PagedKVCache) -> bool:
        """Whether it is the faster way through a step, and a right one.

        The compiled code attends for a slice as soon as it has written that slice's keys and values. Slices that read
        what another slice writes in the same step, as the draft model's may, share a whole block and have a token each
        behind it: no step of at most a block's tokens holds them.
        """
        return layout.num_tokens <= min(MAX_TOKENS, cache.block_size)

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
        decoder, direct = self._decoder, layout.direct
        assert decoder.rotary is not None, "supports() asks for rotary positions"
        assert direct is not None, "the layout was planned for compiled kernels"
        if self._model is None or self._cache is not cache:
            self._model, self._cache = self._describe(cache), cache
        cos, sin = decoder.rotary.tables(layout.num_positions)
        seconds = ctypes.c_double(0.0)
        step = _Step(
            layout.num_tokens, len(direct.pieces), layout.positions.data_ptr(), layout.write_rows.data_ptr(),
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
        decoder, geometry = self._decoder, cache.geometry
        layers = (_Layer * len(decoder.layers))()
        for index, (layer, matrices) in enumerate(zip(decoder.layers, self._matrices, strict=True)):
            norms = [
                self._norm(one) for one in (layer.attention_norm, layer.query_norm, layer.key_norm, layer.mlp_norm)
            ]
            layers[index] = _Layer(
                *norms, *matrices, cache.keys[index].data_ptr(), cache.values[index].data_ptr(), layer.scaling
            )
        assert decoder.rotary is not None, "supports() asks for rotary positions"
        first = decoder.layers[0]
        assert isinstance(first.attention_norm, RmsNorm), "supports() asks for RMS norms"
        return _Model(
            ctypes.cast(layers, ctypes.POINTER(_Layer)), len(decoder.layers), first.qkv.in_features, decoder.num_heads,
            geometry.num_kv_heads, decoder.rotary.rotary_dim, cache.block_size,
            first.mlp_out.in_features, first.attention_norm.eps,
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
        return matrix.struct
