"""The decoder's parts alone: packed weights, norms on either path, rotary tables that grow."""

from __future__ import annotations

import mmap
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from helix_jobs.engine.attention.rotary import RotaryTable
from helix_jobs.engine.model import stored_parts
from helix_jobs.engine.model.description import RowFactor
from helix_jobs.engine.model.families.settings import projection
from helix_jobs.engine.model.mapped_pages import MappedPages
from helix_jobs.engine.model.norms import LayerNorm, RmsNorm
from helix_jobs.engine.model.placement import Float16OverflowError, Placement
from helix_jobs.engine.model.stored_parts import StoredParts
from helix_jobs.engine.weights import linear as linear_module
from helix_jobs.engine.weights.linear import DenseLinear, packs
from tests.unit.engine.devices.operator_rules import operator_name

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dense(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> DenseLinear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((96, 64), generator=generator) / 8
    return DenseLinear(weight.to(dtype), torch.randn(96, generator=generator).to(dtype) if bias else None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_changes_neither_products_nor_what_they_are_added_to(dtype: torch.dtype, *, bias: bool) -> None:
    plain, packed = dense(dtype, bias=bias), dense(dtype, bias=bias)
    packed.pack()
    packed.pack()
    assert packed.nbytes == plain.nbytes
    for rows in (0, 1, 2, 15, 16, 17, 130):
        hidden, residual = torch.randn(rows, 64).to(dtype), torch.randn(rows, 96).to(dtype)
        kept = hidden.clone(), residual.clone()
        tolerance = {"atol": 20 * torch.finfo(dtype).eps, "rtol": 4 * torch.finfo(dtype).eps}
        assert torch.allclose(packed(hidden), plain(hidden), **tolerance)
        assert torch.allclose(packed.add_to(residual, hidden), plain.add_to(residual, hidden), **tolerance)
        assert packed(hidden).shape == (rows, 96)
        assert torch.equal(hidden, kept[0])
        assert torch.equal(residual, kept[1])


def test_a_packed_weight_is_not_handed_out() -> None:
    layer = dense()
    assert layer.weight.shape == (96, 64)
    layer.pack()
    if not packs(torch.float32, CPU):
        pytest.skip("this build of torch has no packed products")
    with pytest.raises(AssertionError, match="cannot be read back"):
        _ = layer.weight


@pytest.fixture
def _no_trial_yet() -> Iterator[None]:
    """Whether packed products serve is tried once for a dtype; what a test makes of it is forgotten again."""
    trial = linear_module._can_pack
    trial.cache_clear()
    yield
    trial.cache_clear()


@pytest.mark.usefixtures("_no_trial_yet")
@pytest.mark.parametrize("fault", [RuntimeError("no oneDNN"), AttributeError("_reorder_linear_weight")])
def test_without_packed_products_the_plain_ones_serve(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise fault

    monkeypatch.setattr(linear_module, "_pack", fail)
    layer = dense()
    layer.pack()
    assert layer.weight.shape == (96, 64)
    assert layer(torch.ones(2, 64)).shape == (2, 96)


@pytest.mark.usefixtures("_no_trial_yet")
def test_packed_products_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "_pack", lambda weight: torch.zeros_like(weight).to_mkldnn())
    assert not packs(torch.float32, CPU)


def test_stacked_layers_give_what_each_gives_side_by_side() -> None:
    weights = [torch.randn(rows, 64) for rows in (48, 16, 16)]
    biases = [torch.randn(48), None, torch.randn(16)]
    hidden = torch.randn(5, 64)
    expected = [functional.linear(hidden, w, b) for w, b in zip(weights, biases, strict=True)]
    assert torch.allclose(DenseLinear.stacked(weights, biases)(hidden), torch.cat(expected, dim=1), atol=1e-5)
    assert DenseLinear.stacked(weights, [None] * 3).bias is None
    alone = DenseLinear.stacked(weights[:1], biases[:1])
    assert alone.weight is weights[0]  # nothing to stack, nothing copied


def factored(modules: dict[str, nn.Linear], dtype: torch.dtype, *factors: RowFactor) -> DenseLinear:
    place = Placement(dtype=dtype, device=CPU, checks_range=dtype == torch.float16)
    made = StoredParts(nn.ModuleDict(modules), place).linear(replace(projection(*modules), factors=factors))
    assert isinstance(made, DenseLinear)
    return made


def test_rows_times_their_factors_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_parts, "_TILE_WEIGHTS", 64 * 3)  # a few rows at a time
    own = {"q": nn.Linear(64, 5, bias=False), "k": nn.Linear(64, 8)}
    made = factored(own, torch.bfloat16, RowFactor(5, 0.3, 1.0), RowFactor(4, 7.0, 2.0), RowFactor(4, 1.0, 1.0))
    factors = torch.tensor([0.3] * 5 + [7.0] * 4 + [1.0] * 4)
    weight = torch.cat((own["q"].weight, own["k"].weight)).detach()
    assert torch.equal(made.weight, (weight * factors.unsqueeze(1)).bfloat16())
    bias = torch.cat((torch.zeros(5), own["k"].bias[:4] * 2, own["k"].bias[4:])).detach()
    assert made.bias is not None
    assert torch.equal(made.bias, bias.bfloat16())


@pytest.mark.parametrize(("weight", "factor", "fits"), [(1e5, 0.5, True), (6e4, 2.0, False)])
def test_in_float16_the_product_with_a_factor_has_to_fit(weight: float, factor: float, *, fits: bool) -> None:
    own = nn.Linear(64, 5, bias=False)
    own.weight.data[3, 3] = weight
    if fits:
        assert factored({"q": own}, torch.float16, RowFactor(5, factor, 1.0)).weight[3, 3] == weight * factor
        return
    with pytest.raises(Float16OverflowError):
        factored({"q": own}, torch.float16, RowFactor(5, factor, 1.0))


def test_an_order_that_leaves_out_rows_is_a_fault() -> None:
    inside = torch.nn.ModuleDict({"qkv": torch.nn.Linear(4, 6)})
    parts = StoredParts(inside, Placement.of(inside))
    turned = parts.linear(projection("qkv"), torch.arange(6).flip(0))
    assert torch.equal(turned.weight, inside["qkv"].weight.flip(0))
    with pytest.raises(AssertionError, match="an order names every row"):
        parts.linear(projection("qkv"), torch.arange(4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_for_devices_without_a_fused_one_is_the_same(dtype: torch.dtype) -> None:
    weight, hidden = torch.randn(64).to(dtype), (3 * torch.randn(7, 64)).to(dtype)
    fused, plain = RmsNorm(weight, 1e-5), RmsNorm(weight, 1e-5)
    plain._is_fused = False
    exact = hidden.double() * torch.rsqrt(hidden.double().square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    for norm in (fused, plain):
        got = norm(hidden)
        assert got.dtype == dtype
        assert torch.allclose(got.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_float32_weight_is_not_rounded_to_the_activations() -> None:
    weight = torch.full((64,), 1.001)  # what Gemma's one plus a small weight is; bfloat16 has no such number
    hidden = torch.ones(1, 64, dtype=torch.bfloat16)
    assert RmsNorm(weight * 1000, 0.0)(hidden)[0, 0] == torch.tensor(1001.0).bfloat16()


def test_a_layer_norm_without_bias() -> None:
    hidden = torch.randn(3, 64)
    assert torch.allclose(LayerNorm(torch.ones(64), None, 1e-5)(hidden).mean(-1), torch.zeros(3), atol=1e-5)


def table(rotary_dim: int = 8, head_dim: int = 8, scaling: float = 1.0) -> RotaryTable:
    frequencies = 10000.0 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    return RotaryTable(frequencies, scaling, head_dim, torch.float32, CPU)


def test_a_rotary_table_grows_and_keeps_what_it_had() -> None:
    rotary = table()
    first, _ = rotary.tables(1)
    again, _ = rotary.tables(len(first))
    assert again is first
    longer, _ = rotary.tables(len(first) + 1)
    assert len(longer) == 2 * len(first)
    assert torch.equal(longer[: len(first)], first)


def test_scores_depend_on_the_distance_alone() -> None:
    rotary = table()
    query, key = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(query_position: int, key_position: int) -> float:
        turned = [
            rotary.rotate(heads, rotary.at(torch.tensor([position]), position + 1))
            for heads, position in ((query, query_position), (key, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(3003, 3000), abs=1e-3)
    assert score(5, 2) != pytest.approx(score(6, 2), abs=1e-3)


def test_what_exceeds_the_rotary_part_is_not_turned() -> None:
    rotary = table(rotary_dim=4, head_dim=8)
    heads = torch.randn(2, 3, 8)
    turned = rotary.rotate(heads, rotary.at(torch.tensor([0, 7]), 8))
    assert torch.equal(turned[:, :, 4:], heads[:, :, 4:])
    assert torch.equal(turned[0], heads[0])  # position 0
    assert not torch.allclose(turned[1, :, :4], heads[1, :, :4])


def test_the_attention_factor_scales_what_is_turned() -> None:
    heads, position = torch.randn(1, 2, 8), torch.tensor([3])
    plain, scaled = (t.rotate(heads, t.at(position, 4)) for t in (table(), table(scaling=1.5)))
    assert torch.allclose(scaled, 1.5 * plain)


class Widenings(TorchDispatchMode):
    """Counts conversions from one dtype to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operator_name(func) == "aten::_to_copy"
        return func(*args, **(kwargs or {}))


def test_a_norm_without_a_fused_kernel_widens_its_weight_once() -> None:
    norm = RmsNorm(torch.ones(8, dtype=torch.float16, device="meta"), 1e-5)
    hidden = torch.ones(3, 8, dtype=torch.float16, device="meta")
    with Widenings() as widenings:
        norm(hidden)
    assert widenings.count == 2  # the input, and the result back


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mapped files are told by Linux alone")
def test_pages_of_mapped_weights_are_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    stored = torch.arange(3 * 2**20, dtype=torch.int32)
    stored.numpy().tofile(file)
    mapped = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=stored.nbytes)
    weight = torch.tensor([], dtype=torch.float32).set_(mapped)
    own = torch.ones(2**20)
    module = nn.ParameterList([nn.Parameter(one, requires_grad=False) for one in (weight, own)])
    assert torch.equal(weight.view(torch.int32), stored)  # all pages are there now

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE  # of mapped files

    before = resident()
    MappedPages().give_back(module)
    assert before - resident() > 0.9 * stored.nbytes
    assert torch.equal(weight.view(torch.int32), stored)
    assert bool((own == 1).all())
