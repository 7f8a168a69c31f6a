"""Compiled kernels against the torch operators that define them. Skipped without a compiler, except in CI's own run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
from helix_jobs.engine.attention.cache_geometry import CacheGeometry
from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.attention.step_layout import TokenSlice
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.kernels.cpu.attention import CompiledAttention
from helix_jobs.engine.kernels.cpu.int8_linear import CompiledInt8Linear
from helix_jobs.engine.kernels.cpu.int8_matrix import Int8Matrix
from helix_jobs.engine.kernels.cpu.kernels import NativeKernels, load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import with_native
from helix_jobs.engine.loaded_models import LoadedModel
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.norms import RmsNorm
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.weights.int8_linear import Int8Linear
from helix_jobs.engine.weights.linear import DenseLinear
from tests.unit.engine.tiny_models import (
    CPU,
    RECURRENT,
    as_loaded,
    copy_of,
    greedy_beside_each,
    loaded,
    ragged_logits,
    request,
    roughen,
    tiny_model,
)

DTYPES = (torch.float32, torch.bfloat16)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize("size", [1, 15, 16, 48, 577])
def test_rms_norm(kernels, size):
    native, dtype = kernels
    hidden, weight = torch.randn(5, 3, size).to(dtype), torch.randn(size).to(dtype)
    plain = RmsNorm(weight, 1e-5)
    torch.testing.assert_close(native.rms_norm(hidden, weight, 1e-5), plain(hidden), **tolerance(dtype))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(64, 48, 1), (80, 33, 5), (1536, 576, 70)])
def test_int8_products_follow_the_torch_ones(kernels, inputs, outputs, rows, bias):
    native, dtype = kernels
    weight = torch.randn(outputs, inputs).to(dtype)
    dense = DenseLinear(weight, torch.randn(outputs).to(dtype) if bias else None)
    plain = Int8Linear.from_dense(dense)
    compiled = CompiledInt8Linear(plain, native)
    for layer in (plain, compiled):
        layer.pack()
    hidden, residual = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    # A value that lies between two whole numbers may round either way, which one part in 127 of its row bounds.
    slack = {"rtol": 2e-2, "atol": 0.02 * inputs**0.5}
    torch.testing.assert_close(compiled(hidden), plain(hidden), **slack)
    torch.testing.assert_close(compiled.add_to(residual, hidden), plain.add_to(residual, hidden), **slack)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 21, 70])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 1), (1, 3), (33, 65), (1536, 31), (9000, 4)])
def test_a_compiled_int8_product_is_exact_in_whole_numbers(kernels, inputs, outputs, rows):
    native, dtype = kernels
    if dtype != torch.float32:
        pytest.skip("bfloat16 rounds what comes out")
    torch.manual_seed(rows)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    hidden = torch.randint(-127, 128, (rows, inputs)).float()
    hidden[:, 0] = 127.0  # so that one step is worth 1
    residual, bias = torch.randn(rows, outputs), torch.randn(outputs)
    matrix = Int8Matrix.of(weight, torch.full((outputs,), 0.5), bias)
    whole = (hidden.long() @ weight.long().t()).float() * 0.5
    assert torch.equal(native.int8_linear(hidden, matrix, None), whole + bias)
    assert torch.equal(native.int8_linear(hidden, matrix, residual), whole + bias + residual)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(kernels, value):
    native, dtype = kernels
    hidden = torch.randn(3, 64).to(dtype)
    hidden[1, 7] = value
    dense = DenseLinear(torch.randn(32, 64).to(dtype), None)
    layer = CompiledInt8Linear(Int8Linear.from_dense(dense), native)
    layer.pack()
    finite = torch.isfinite(layer(hidden).float()).all(dim=1)
    assert finite.tolist() == [True, False, True]
    norm = native.rms_norm(hidden, torch.ones(64, dtype=dtype), 1e-5)
    assert not torch.isfinite(norm[1].float()).all()
    assert torch.isfinite(norm[0].float()).all()


ARCHITECTURES = {
    "llama": {"head_dim": 16},
    "qwen2": {"head_dim": 16},
    "qwen3": {"head_dim": 16},
    "phi3": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "gemma": {"head_dim": 16},
    **{name: {"head_dim": 16} for name in RECURRENT},
}


def runners(native: NativeKernels, dtype: torch.dtype, name: str, **overrides) -> tuple[ModelRunner, ModelRunner]:
    model = tiny_model(name, **overrides).to(dtype)
    made = []
    for kernels in (None, native):
        decoder = build_decoder(copy_of(model).to(dtype))
        decoder.pack()
        if kernels is not None:
            decoder = with_native(decoder, kernels)
        made.append(ModelRunner(decoder, CacheConfig(num_blocks=60, block_size=4)))
    return made[0], made[1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_ragged_step_over_a_filled_cache(kernels, name):
    native, dtype = kernels
    plain, compiled = runners(native, dtype, name, **ARCHITECTURES[name])
    blocks = [list(range(i * 15, i * 15 + 15)) for i in range(4)]
    lengths = (1, 7, 30, 37)
    steps = [
        [TokenSlice(length, 0, blocks[i]) for i, length in enumerate(lengths)],
        [TokenSlice(new, lengths[i], blocks[i]) for i, new in enumerate((1, 5, 1, 19))],
        [TokenSlice(new, (2, 12, 31, 56)[i], blocks[i]) for i, new in enumerate((3, 1, 17, 1))],
    ]
    for slices in steps:
        logits = []
        for runner in (plain, compiled):
            plan = runner.plan(slices)
            tokens = [[(3 * i + 5 * j) % 30 + 2 for j in range(part.num_tokens)] for i, part in enumerate(slices)]
            rows = [plan.offsets[i] + j for i, part in enumerate(slices) for j in range(part.num_tokens)]
            logits.append(runner.forward(plan, tokens, rows))
        apart, size = (logits[1] - logits[0]).float().abs(), logits[0].float().abs()
        assert apart.mean() < (1e-5 if dtype == torch.float32 else 0.1) * size.mean()


@pytest.mark.thorough
@pytest.mark.parametrize("block_size", [4, 5, 16, 24, 32])
@pytest.mark.parametrize("head_dim", [16, 80, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
def test_attention_equals_a_dense_one(folder, dtype, head_dim, block_size):
    native = load_kernels(folder, dtype, CPU, head_dim)
    heads, kv_heads, length, num_new = 6, 2, 29, 3
    blocks = torch.randperm(10)[: -(-length // block_size)].tolist()
    rows = [torch.randn(kv_heads, length, head_dim).to(dtype) for _ in range(2)]
    queries = torch.randn(num_new, heads * head_dim).to(dtype)
    attention, cache = attention_alone(native, heads, kv_heads, head_dim**-0.5, block_size)
    # What no token was written to may hold anything; the new tokens' rows are written by the step itself.
    for pool, written in zip((cache.keys[0], cache.values[0]), rows, strict=True):
        pool.fill_(float("nan"))
        blockwise = pool.view(-1, kv_heads, block_size, head_dim)
        for place, block in enumerate(blocks):
            part = written[:, place * block_size : min((place + 1) * block_size, length - num_new)]
            blockwise[block, :, : part.shape[1]] = part
    new = [part[:, length - num_new :].transpose(0, 1).reshape(num_new, -1) for part in rows]
    output = attended(attention, cache, [TokenSlice(num_new, length - num_new, blocks)], queries, *new)
    wanted = queries.float().view(num_new, heads, head_dim).transpose(0, 1).reshape(kv_heads, -1, head_dim)
    scores = (wanted @ rows[0].float().transpose(1, 2) * head_dim**-0.5).view(heads, num_new, length)
    for query in range(num_new):
        scores[:, query, length - num_new + query + 1 :] = -float("inf")
    weights = torch.softmax(scores, dim=-1).view(kv_heads, -1, length)
    dense = (weights @ rows[1].float()).view(heads, num_new, head_dim).transpose(0, 1).reshape(num_new, -1)
    torch.testing.assert_close(output.float(), dense, **tolerance(dtype))


def attention_alone(
    native: NativeKernels, heads: int, kv_heads: int, scaling: float, block_size: int
) -> tuple[CompiledAttention, PagedKVCache]:
    """Of one layer that rotates nothing, and a cache of ten blocks."""
    geometry = CacheGeometry.uniform(num_layers=1, num_kv_heads=kv_heads, head_dim=native.head_dim)
    spec = AttentionSpec(geometry=geometry, num_heads=heads, layers=(LayerAttention(scaling),))
    cache = PagedKVCache(geometry, CacheConfig(num_blocks=10, block_size=block_size), native.dtype, CPU)
    return CompiledAttention(spec, native), cache


def attended(
    attention: CompiledAttention, cache: PagedKVCache, slices: list[TokenSlice], *qkv: torch.Tensor
) -> torch.Tensor:
    """What a step over these slices makes of queries, keys and values, ``[T, size]`` each."""
    plan = attention.plan(slices, cache)
    layout = plan.on_device(iter([torch.from_numpy(array) for array in plan.arrays()]))
    return attention.begin(layout, cache).attend(0, torch.cat(qkv, dim=1))


def test_a_sink_that_is_no_number_is_seen(kernels):
    native, dtype = kernels
    plain, cache = attention_alone(native, 4, 2, 0.25, 4)
    sinks = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    (layer,) = plain.spec.layers
    attention = CompiledAttention(replace(plain.spec, layers=(replace(layer, sinks=sinks),)), native)
    qkv = [torch.randn(2, size).to(dtype) for size in (64, 32, 32)]
    without, output = (attended(one, cache, [TokenSlice(2, 0, (3,))], *qkv) for one in (plain, attention))
    finite = torch.isfinite(output.float()).view(2, 4, 16).all(dim=2)
    assert finite.tolist() == [[False, False, True, True]] * 2
    assert torch.equal(output.view(2, 4, 16)[:, 2], without.view(2, 4, 16)[:, 2])


def test_a_poisoned_key_is_seen_by_those_who_attend_to_it_and_by_no_one_else(kernels):
    native, dtype = kernels
    attention, cache = attention_alone(native, 4, 2, 0.25, 4)
    for pool in (cache.keys[0], cache.values[0]):
        pool.copy_(torch.randn(pool.shape).to(dtype))
    cache.keys[0].view(-1, 2, 4, 16)[1, 0, 2] = float("nan")
    slices = [TokenSlice(1, start, blocks) for start, blocks in ((5, (0, 1)), (7, (0, 1)), (7, (2, 3)))]
    output = attended(attention, cache, slices, *(torch.randn(3, size).to(dtype) for size in (64, 32, 32)))
    assert torch.isfinite(output.float()).all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "phi3", "mistral"])
def test_an_int8_decoder_in_one_call_equals_its_layers_one_by_one(kernels, architecture):
    native, dtype = kernels
    if not native.has_byte_products:
        pytest.skip("this processor multiplies no bytes")
    overrides = {"llama": {"intermediate_size": 83}, "mistral": {"sliding_window": 6}}
    model = tiny_model(architecture, head_dim=16, **overrides.get(architecture, {}))
    roughen(model)
    made = []
    for is_small in (False, True):
        decoder = with_native(quantize(build_decoder(copy_of(model, dtype))), native)
        assert decoder.small_steps is not None
        made.append(
            ModelRunner(
                decoder if is_small else replace(decoder, small_steps=None), CacheConfig(num_blocks=60, block_size=4)
            )
        )
    blocks = [list(range(i * 15, i * 15 + 15)) for i in range(4)]
    prompts = (1, 7, 30, 37)
    steps = [
        [TokenSlice(length, 0, blocks[i]) for i, length in enumerate(prompts)],  # too long for one call
        [TokenSlice(new, prompts[i], blocks[i]) for i, new in enumerate((1, 5, 1, 1))],
        [TokenSlice(1, (2, 12, 31, 38)[i], blocks[i]) for i in range(4)],
        [TokenSlice(1, 13, blocks[1])],
    ]
    for slices in steps:
        outputs = []
        for runner in made:
            plan = runner.plan(slices)
            tokens = [[(3 * i + 5 * j) % 30 + 2 for j in range(part.num_tokens)] for i, part in enumerate(slices)]
            outputs.append(runner.forward(plan, tokens, range(plan.num_tokens)).float())
        # Roundings to 8 bits fall on either side here and there, and the layers hand on what that makes.
        apart, size = (outputs[1] - outputs[0]).abs().mean(), outputs[0].abs().mean()
        assert apart < (0.02 if dtype == torch.float32 else 0.15) * size
        assert all(runner.take_attention_seconds() > 0 for runner in made)


def test_a_slice_reads_rows_that_another_one_writes_in_the_same_small_step(kernels):
    native, dtype = kernels
    decoder = with_native(quantize(build_decoder(tiny_model(head_dim=16).to(dtype))), native)
    runner = ModelRunner(decoder, CacheConfig(num_blocks=8, block_size=4))
    for pool in (*runner.cache.keys, *runner.cache.values):
        pool.fill_(float("nan"))
    # The reader comes first: code that writes and attends slice by slice has not written what it reads.
    plan = runner.plan([TokenSlice(1, 4, [0, 2]), TokenSlice(5, 0, [0, 1])])
    logits = runner.forward(plan, [[9], [5, 7, 3, 8, 9]], [plan.offsets[0], plan.offsets[1] + 4])
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0], logits[1])


def test_an_int8_decoder_in_one_call_shows_what_is_not_finite(kernels):
    native, dtype = kernels
    decoder = with_native(quantize(build_decoder(tiny_model(head_dim=16).to(dtype))), native)
    if decoder.small_steps is None:
        pytest.skip("this processor multiplies no bytes")
    decoder.embedding[7] = float("nan")
    runner = ModelRunner(decoder, CacheConfig(num_blocks=8, block_size=4))
    plan = runner.plan([TokenSlice(1, 0, [0]), TokenSlice(1, 0, [1]), TokenSlice(2, 0, [2])])
    logits = runner.forward(plan, [[5], [7], [5, 7]], range(4))
    assert torch.isfinite(logits.float()).all(dim=1).tolist() == [
        True,
        False,
        False,  # a masked key's NaN reaches the queries before it within a slice, as it does in torch
        False,
    ]


@pytest.mark.parametrize("draft", ["none", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_greedy_equals_transformers(folder, architecture, draft):
    model = tiny_model(architecture, head_dim=16)
    native = load_kernels(folder, torch.float32, CPU, 16)
    models = loaded(model, "none")
    target = as_loaded("tiny", model)
    target = LoadedModel("tiny", with_native(target.decoder, native))
    drafting = None
    if draft == "int8":
        int8 = quantize(build_decoder(copy_of(model)))
        drafting = LoadedModel("int8", with_native(int8, native), is_int8=True)
    models = type(models)(target, drafting, models.tokenizer, models.eos_token_ids, models.vocab_size, 256)
    engine = Engine(
        models,
        EngineConfig(max_batch_size=3, token_budget=9, speculation=SpeculationConfig(depth=4, adaptive=False)),
        CacheConfig(num_blocks=60, block_size=4),
    )
    prompts = [[5, 9, 11], list(range(2, 33)), [7], [4, 4, 4, 4, 4, 4, 4]]
    results = engine.generate([request(str(i), p, max_tokens=20) for i, p in enumerate(prompts)])
    outputs = [r.output_token_ids for r in results]
    assert outputs == greedy_beside_each(model, prompts, outputs, 20)


def test_sinks_in_compiled_attention_equal_those_in_plain_products(kernels):
    native, dtype = kernels
    model = roughen(tiny_model("gpt_oss", head_dim=16, seed=3))
    with torch.no_grad():  # one head is drawn to its sink almost alone, one does not see it
        for layer in model.model.layers:
            layer.self_attn.sinks[:2] = torch.tensor([60.0, -60.0])
    plain = build_decoder(copy_of(model, dtype))
    compiled = with_native(build_decoder(copy_of(model, dtype)), native)
    assert isinstance(compiled.attention, CompiledAttention)
    prompts = [[(7 * i) % 30 + 2 for i in range(length)] for length in (1, 9, 33, 60)]
    rows = zip(ragged_logits(compiled, prompts, 17), ragged_logits(plain, prompts, 17), strict=True)
    apart = torch.cat([(got - expected).norm(dim=-1) / expected.norm(dim=-1) for got, expected in rows])
    # In bfloat16 two experts that score almost alike may change places.
    assert float(apart.max() if dtype == torch.float32 else apart.median()) < (1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "glm4_moe", "gpt_oss"])
def test_experts_compute_a_token_alike_in_any_company(kernels, architecture):
    native, dtype = kernels
    model = roughen(tiny_model(architecture, head_dim=16, seed=3))
    decoder = with_native(build_decoder(copy_of(model, dtype)), native)
    # The tiny products round alike in any number of rows; what decides here is who is grouped with whom, and the sums.
    prompts = [[(7 * i + k) % 30 + 2 for i in range(12 + k)] for k in range(6)]
    together = ragged_logits(decoder, prompts)
    assert all(map(torch.equal, ragged_logits(decoder, prompts, 5), together))
    assert all(
        torch.equal(ragged_logits(decoder, [prompt])[0], row) for prompt, row in zip(prompts, together, strict=True)
    )
