from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from model_files import logits
from tiny_models import ARCHITECTURES, tiny_model
from torch import nn

from helix_jobs.engine import int8_linear
from helix_jobs.engine.int8_linear import Int8Linear, Int8Sibling, SiblingProduct, quantize_copy, quantize_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _linear(inputs: int, outputs: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs * 1000 + outputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("rows", range(1, 18))
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (33, 65), (96, 40), (128, 64)])
def test_the_product_is_exact_in_whole_numbers_at_odd_shapes(rows: int, inputs: int, outputs: int) -> None:
    layer = Int8Linear.from_linears(_linear(inputs, outputs))
    hidden = torch.randn(rows, inputs)
    quantized, scale = quantize_rows(hidden)
    expected = (quantized.long() @ layer.weight.long().t()).float() * layer.scale * scale
    assert torch.equal(layer(hidden), expected)
    layer.pack()
    assert torch.equal(layer(hidden), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_close_to_the_layer_it_replaces(dtype: torch.dtype, *, bias: bool) -> None:
    linear = _linear(256, 192, bias=bias, dtype=dtype)
    hidden = torch.randn(9, 256).to(dtype)
    got = Int8Linear.from_linears(linear)(hidden)
    assert got.dtype == dtype
    assert _relative_error(got, linear.double()(hidden.double())) < 0.02


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    layer = Int8Linear.from_linears(_linear(64, 48, bias=True))
    hidden = torch.randn(17, 64).bfloat16()
    for _ in ("plain", "packed"):
        together = layer(hidden)
        assert all(torch.equal(layer(hidden[i : i + 1])[0], together[i]) for i in range(17))
        layer.pack()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_input_is_left_as_it_was(dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 64).to(dtype)
    before = hidden.clone()
    layer = Int8Linear.from_linears(_linear(64, 48))
    layer(hidden)
    layer.pack()
    layer(hidden)
    assert torch.equal(hidden, before)


def test_leading_dimensions_and_strides_are_kept() -> None:
    layer = Int8Linear.from_linears(_linear(64, 48))
    hidden = torch.randn(2, 64, 5).transpose(1, 2)
    assert torch.equal(layer(hidden), layer(hidden.reshape(10, 64)).view(2, 5, 48))


def test_no_rows_give_no_rows() -> None:
    layer = Int8Linear.from_linears(_linear(64, 48))
    assert layer(torch.empty(0, 64)).shape == (0, 48)
    layer.pack()
    assert layer(torch.empty(0, 64)).shape == (0, 48)


def test_zeros_and_huge_values_stay_finite() -> None:
    linear = _linear(64, 48, bias=True)
    linear.weight[5] = 0
    hidden = torch.zeros(2, 64)
    hidden[1, 3] = 1e30
    got = Int8Linear.from_linears(linear)(hidden)
    assert torch.equal(got[0], linear.bias)
    assert got[1].isfinite().all()


def test_extremes_use_the_whole_range_and_never_wrap() -> None:
    quantized, scale = quantize_rows(torch.tensor([[-3.0, 3.0, 0.0, 1.5]]))
    assert quantized.tolist() == [[-127, 127, 0, 64]]
    assert scale.item() == pytest.approx(3 / 127)


@pytest.mark.parametrize("dtype", DTYPES)
def test_off_the_cpu_the_weights_are_widened(dtype: torch.dtype) -> None:
    linear = _linear(256, 192, bias=True)
    layer = Int8Linear.from_linears(linear)
    # The meta device stands for any that is not the CPU: shapes and dtypes without numbers.
    elsewhere = Int8Linear.from_linears(linear).to("meta")(torch.empty(2, 3, 256, dtype=dtype, device="meta"))
    assert elsewhere.shape == (2, 3, 192)
    assert elsewhere.dtype == dtype
    hidden = torch.randn(5, 256).to(dtype)
    assert _relative_error(layer._forward_dequantized(hidden), linear.double()(hidden.double())) < 0.02


def _siblings(linears: Sequence[nn.Linear]) -> list[Int8Sibling]:
    product = SiblingProduct(linears)
    return [Int8Sibling(product, index) for index in range(len(linears))]


def test_packing_keeps_one_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_linear, "_packs_exactly", lambda: True)
    layer = Int8Linear.from_linears(_linear(64, 48, bias=True))
    assert layer.nbytes == sum(buffer.nbytes for buffer in layer.buffers())
    before = layer.nbytes
    layer.pack()
    assert not hasattr(layer, "weight")
    assert layer.nbytes == before
    layer.pack()


def test_a_cpu_without_the_instructions_keeps_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    int8_linear._packs_exactly.cache_clear()
    try:
        layer = Int8Linear.from_linears(_linear(64, 48))
        layer.pack()
        assert layer.weight.dtype == torch.int8
    finally:
        int8_linear._packs_exactly.cache_clear()


def test_packed_products_that_are_not_exact_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    monkeypatch.setattr(int8_linear, "_packed_product", lambda rows, *_: torch.zeros(len(rows), 32))
    int8_linear._packs_exactly.cache_clear()
    try:
        assert not int8_linear._packs_exactly()
    finally:
        int8_linear._packs_exactly.cache_clear()


def test_siblings_give_what_each_layer_alone_gives() -> None:
    linears = [_linear(64, 48, bias=True), _linear(64, 16), _linear(64, 24, bias=True)]
    siblings = _siblings(linears)
    for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0], [0, 1, 2]):
        hidden = torch.randn(3, 64)
        for i in order:
            assert torch.equal(siblings[i](hidden), Int8Linear.from_linears(linears[i])(hidden))


def test_siblings_compute_once_and_forget() -> None:
    siblings = _siblings([_linear(64, 48), _linear(64, 16)])
    product = siblings[0].product
    calls = []
    product.stacked.register_forward_hook(lambda *_: calls.append(1))
    hidden = torch.randn(3, 64)
    for sibling in siblings:
        sibling(hidden)
    assert len(calls) == 1
    assert product._input is None
    assert product._outputs == {}


def test_an_input_changed_between_steps_is_computed_again() -> None:
    siblings = _siblings([_linear(64, 48), _linear(64, 16)])
    hidden = torch.randn(3, 64)
    first = [sibling(hidden) for sibling in siblings]
    hidden.mul_(2)
    assert torch.allclose(siblings[0](hidden), first[0] * 2)
    siblings[1](hidden)
    hidden.mul_(2)
    assert torch.allclose(siblings[1](hidden), first[1] * 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_is_close_to_its_model(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, vocab_size=64).to(dtype)
    copied = quantize_copy(model)
    assert not any(type(module) is nn.Linear for module in copied.modules())
    assert copied.dtype == dtype
    got, expected = logits(copied), logits(model)
    assert got.dtype == dtype
    assert _relative_error(got, expected) < 0.25
    assert (got.argmax(-1) == expected.argmax(-1)).float().mean() > 0.7


def test_a_tied_output_head_is_quantised_and_the_embedding_is_not() -> None:
    model = tiny_model(vocab_size=64)
    model.lm_head.weight = model.model.embed_tokens.weight
    copied = quantize_copy(model)
    assert isinstance(copied.lm_head, Int8Linear)
    assert copied.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert copied.get_output_embeddings() is copied.lm_head


def test_embeddings_and_norms_are_shared_and_nothing_else() -> None:
    model = tiny_model()
    copied = quantize_copy(model)
    shared = {name for name, parameter in copied.named_parameters()}
    assert shared == {name for name, _ in model.named_parameters() if "norm" in name or "embed" in name}
    theirs = {tensor.data_ptr() for tensor in model.parameters()} | {tensor.data_ptr() for tensor in model.buffers()}
    assert not [name for name, buffer in copied.named_buffers() if buffer.data_ptr() in theirs]
    assert not set(map(id, copied.modules())) & set(map(id, model.modules()))
    assert copied.config is not model.config


def test_neither_model_notices_what_is_done_to_the_other() -> None:
    model = tiny_model("qwen2")
    copied = quantize_copy(model)
    of_model, of_copy = logits(model), logits(copied)
    for module in model.modules():  # as a runner may: replaced, emptied, another attention
        if type(module) is nn.Linear:
            module.weight = nn.Parameter(torch.zeros_like(module.weight), requires_grad=False)
    model.config.num_key_value_heads = 1
    model.model.layers[0].self_attn.q_proj = nn.Identity()
    assert torch.equal(logits(copied), of_copy)

    model = tiny_model("qwen2")
    copied = quantize_copy(model)
    for buffer in copied.buffers():
        buffer.zero_()
    copied.model.layers[1] = nn.Identity()
    assert torch.equal(logits(model), of_model)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_copy_runs_without_gradients_in_either_mode(mode: type[torch.no_grad | torch.inference_mode]) -> None:
    copied = quantize_copy(tiny_model())
    with mode():
        out = copied(input_ids=torch.tensor([[2, 3]])).logits
    assert out.isfinite().all()
