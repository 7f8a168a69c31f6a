from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import dequantize, quantize
from helix_jobs.engine.weights import int8_linear
from helix_jobs.engine.weights.int8_linear import Int8Linear, quantize_rows
from helix_jobs.engine.weights.linear import DenseLinear, packs
from helix_jobs.errors import ConfigurationError
from tests.unit.engine.tiny_models import ARCHITECTURES, copy_of, decoder_logits, tiny_model
from tests.unit.engine.weights.opened_linear import held_weight

if TYPE_CHECKING:
    from helix_jobs.engine.model.decoder import Decoder

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _dense(inputs: int, outputs: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> DenseLinear:
    torch.manual_seed(inputs * 1000 + outputs)
    weight = torch.randn(outputs, inputs) / inputs**0.5
    return DenseLinear(weight.to(dtype), torch.randn(outputs).to(dtype) if bias else None)


def _exact(dense: DenseLinear, hidden: torch.Tensor) -> torch.Tensor:
    product = hidden.double() @ dense.weight.double().t()
    return product if dense.bias is None else product + dense.bias.double()


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("rows", range(1, 18))
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (33, 65), (96, 40), (128, 64)])
def test_the_product_is_exact_in_whole_numbers_at_odd_shapes(rows: int, inputs: int, outputs: int) -> None:
    layer = Int8Linear.from_dense(_dense(inputs, outputs))
    hidden = torch.randn(rows, inputs)
    quantized, scale = quantize_rows(hidden)
    assert layer.rows is not None
    expected = (quantized.long() @ layer.rows.long().t()).float() * layer.scale * scale
    assert torch.equal(layer(hidden), expected)
    layer.pack()
    assert torch.equal(layer(hidden), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_close_to_the_layer_it_replaces(dtype: torch.dtype, *, bias: bool) -> None:
    dense = _dense(256, 192, bias=bias, dtype=dtype)
    hidden = torch.randn(9, 256).to(dtype)
    got = Int8Linear.from_dense(dense)(hidden)
    assert got.dtype == dtype
    assert _relative_error(got, _exact(dense, hidden)) < 0.02


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    layer = Int8Linear.from_dense(_dense(64, 48, bias=True))
    hidden = torch.randn(17, 64).bfloat16()
    for _ in ("plain", "packed"):
        together = layer(hidden)
        assert all(torch.equal(layer(hidden[i : i + 1])[0], together[i]) for i in range(17))
        layer.pack()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_input_is_left_as_it_was(dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 64).to(dtype)
    before = hidden.clone()
    layer = Int8Linear.from_dense(_dense(64, 48))
    layer(hidden)
    layer.pack()
    layer(hidden)
    assert torch.equal(hidden, before)


def test_strided_rows_are_read_as_they_are() -> None:
    layer = Int8Linear.from_dense(_dense(64, 48))
    hidden = torch.randn(64, 5).t()
    assert torch.equal(layer(hidden), layer(hidden.contiguous()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_adding_to_a_residual_rounds_once_and_leaves_it_as_it_was(dtype: torch.dtype) -> None:
    dense = _dense(64, 48, bias=True)
    layer = Int8Linear.from_dense(dense)
    hidden, residual = torch.randn(3, 64).to(dtype), torch.randn(3, 48).to(dtype)
    before = residual.clone()
    for _ in ("plain", "packed"):
        got = layer.add_to(residual, hidden)
        assert got.dtype == dtype
        assert torch.equal(got, (residual.float() + layer(hidden.float())).to(dtype))
        assert torch.equal(residual, before)
        layer.pack()


def test_no_rows_give_no_rows() -> None:
    layer = Int8Linear.from_dense(_dense(64, 48))
    assert layer(torch.empty(0, 64)).shape == (0, 48)
    layer.pack()
    assert layer(torch.empty(0, 64)).shape == (0, 48)


def test_zeros_and_huge_values_stay_finite() -> None:
    dense = _dense(64, 48, bias=True)
    dense.weight[5] = 0
    hidden = torch.zeros(2, 64)
    hidden[1, 3] = 1e30
    got = Int8Linear.from_dense(dense)(hidden)
    assert torch.equal(got[0], dense.bias)
    assert got[1].isfinite().all()


def test_extremes_use_the_whole_range_and_never_wrap() -> None:
    quantized, scale = quantize_rows(torch.tensor([[-3.0, 3.0, 0.0, 1.5]]))
    assert quantized.tolist() == [[-127, 127, 0, 64]]
    assert scale.item() == pytest.approx(3 / 127)


def test_packing_keeps_one_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_linear, "packs_int8", lambda: True)
    layer = Int8Linear.from_dense(_dense(64, 48, bias=True))
    assert layer.nbytes == 48 * 64 + 2 * 48 * 4
    plain = held_weight(layer)
    layer.pack()
    packed = held_weight(layer)
    assert packed is not plain
    assert packed.numel() == plain.numel()
    layer.pack()
    assert held_weight(layer) is packed


def test_a_cpu_without_the_instructions_keeps_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    int8_linear.packs_int8.cache_clear()
    try:
        layer = Int8Linear.from_dense(_dense(64, 48))
        layer.pack()
        assert layer.rows is not None, "it is packed"
        assert layer.rows.dtype == torch.int8
    finally:
        int8_linear.packs_int8.cache_clear()


def test_packed_products_that_are_not_exact_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    monkeypatch.setattr(int8_linear, "_packed_product", lambda rows, *_: torch.zeros(len(rows), 32))
    int8_linear.packs_int8.cache_clear()
    try:
        assert not int8_linear.packs_int8()
    finally:
        int8_linear.packs_int8.cache_clear()


def test_a_packed_layer_cannot_be_quantised_any_more() -> None:
    dense = _dense(64, 48)
    dense.pack()
    if not packs(torch.float32, torch.device("cpu")):
        pytest.skip("this CPU has no packed products")
    with pytest.raises(AssertionError, match="cannot be read back"):
        Int8Linear.from_dense(dense)


def _decoder(architecture: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Decoder:
    return build_decoder(copy_of(tiny_model(architecture, vocab_size=64, **overrides), dtype))


@pytest.mark.thorough(fast=23)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantised_decoder_is_close_to_the_dense_one(architecture: str, dtype: torch.dtype) -> None:
    dense = _decoder(architecture, dtype)
    quantised = quantize(dense)
    assert all(isinstance(linear, Int8Linear) for linear in quantised.linears())
    assert quantised.dtype == dtype
    expected = decoder_logits(dense)
    for _ in ("plain", "packed"):
        got = decoder_logits(quantised)
        assert got.dtype == dtype
        assert 0 < _relative_error(got, expected) < 0.25
        assert (got.argmax(-1) == expected.argmax(-1)).float().mean() > 0.7
        quantised.pack()


def test_a_tied_output_head_is_quantised_and_the_embedding_is_not() -> None:
    dense = _decoder("llama", tie_word_embeddings=True)
    assert isinstance(dense.head, DenseLinear)
    assert dense.head.weight.data_ptr() == dense.embedding.data_ptr()
    quantised = quantize(dense)
    assert isinstance(quantised.head, Int8Linear)
    assert quantised.embedding is dense.embedding


def test_embeddings_and_norms_are_shared_and_no_product_is() -> None:
    dense = _decoder("qwen2")
    quantised = quantize(dense)
    assert quantised.final_norm is dense.final_norm
    assert quantised.attention is dense.attention
    assert not set(map(id, quantised.linears())) & set(map(id, dense.linears()))
    biases = [linear.bias for linear in quantised.linears() if isinstance(linear, Int8Linear)]
    theirs = [linear.bias for linear in dense.linears() if isinstance(linear, DenseLinear)]
    assert any(bias is not None for bias in theirs)
    for mine, other in zip(biases, theirs, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or other is None or mine.data_ptr() != other.data_ptr()


def test_packing_or_changing_one_leaves_the_other_alone() -> None:
    dense = _decoder("qwen2")
    quantised = quantize(dense)
    of_dense, of_quantised = decoder_logits(dense), decoder_logits(quantised)
    dense.pack()
    assert torch.equal(decoder_logits(quantised), of_quantised)
    quantised.pack()
    for linear in quantised.linears():
        assert isinstance(linear, Int8Linear)
        linear.scale.zero_()
    assert torch.allclose(decoder_logits(dense), of_dense, atol=1e-5)


def test_a_widened_decoder_computes_with_the_rounded_weights() -> None:
    quantised = quantize(_decoder("qwen2"))
    widened = dequantize(quantised)
    assert all(isinstance(linear, DenseLinear) for linear in widened.linears())
    first, rounded = widened.linears()[0], quantised.linears()[0]
    assert isinstance(first, DenseLinear)
    assert isinstance(rounded, Int8Linear)
    assert first.bias is not None
    assert rounded.bias is not None
    assert rounded.rows is not None
    assert torch.equal(first.weight, rounded.rows.float() * rounded.scale.unsqueeze(1))
    assert torch.equal(first.bias, rounded.bias)
    # Activations are rounded in one of them only.
    assert _relative_error(decoder_logits(quantised), decoder_logits(widened)) < 0.1


def test_off_the_cpu_a_decoder_is_not_quantised() -> None:
    elsewhere = replace(_decoder("llama"), device=torch.device("meta"))
    with pytest.raises(ConfigurationError, match="int8 layers run on a CPU only, not on meta; use dtype auto"):
        quantize(elsewhere)
