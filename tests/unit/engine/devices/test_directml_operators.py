"""Whole generations on a simulated DirectML device: no operator, dtype, rank or write beyond its rules."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import types
import venv
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helix_jobs.engine.attention.kv_cache import PagedKVCache
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.devices.operator_checks import operator_checks, run_check
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.model_loader import get_device, load_models
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.speculation.depth.profile import measure_costs
from helix_jobs.errors import UnsupportedArchitectureError
from tests.unit.engine.adapters_at_random import random_adapter
from tests.unit.engine.devices.placed_models import draft_of, engine_of, loaded_on_device, loaded_on_host
from tests.unit.engine.devices.simulated_directml import DIRECTML, DirectmlTensor, SimulatedDirectml
from tests.unit.engine.model_files import save_checkpoint
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import ARCHITECTURES, RECURRENT, VOCAB_SIZE, copy_of, request, tiny_model
from tests.worker_box import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.request import GenerationResult, Request

DTYPES = [torch.float32, torch.float16]
# float16 beside float32 where it does not change which operators run: see CASES.
SLOW_FLOAT16 = [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)]
ADAPTED = [
    f"layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
]


def work() -> list[Request]:
    """Shared prefixes, chunked prompts, repetition for lookup, greedy and sampled and penalised, too much at once."""
    rng = random.Random(4)
    shared = [rng.randrange(1, VOCAB_SIZE) for _ in range(13)]
    prompts = [shared + [rng.randrange(1, VOCAB_SIZE) for _ in range(n)] for n in (1, 3, 17, 2)]
    prompts += [[3, 4, 5, 6, 7] * 5, [9], [rng.randrange(1, VOCAB_SIZE) for _ in range(40)]]
    params: list[dict[str, Any]] = [{}, {"temperature": 0.9, "top_k": 5}, {"repetition_penalty": 1.3}, {}, {}]
    params += [{"logprobs": 3}, {"prompt_logprobs": 2}]
    return [
        request(str(i), prompt, seed=i, max_tokens=20, ignore_eos=True, **extra)
        for i, (prompt, extra) in enumerate(zip(prompts, params, strict=True))
    ]


def finished(results: list[GenerationResult]) -> list[tuple[int, ...]]:
    assert [result.error for result in results] == [None] * len(results)
    assert all(result.completion_tokens == 20 for result in results)
    return [result.output_token_ids for result in results]


@functools.cache
def tried_by_doctor() -> set[str]:
    """Operators that ``helix doctor`` runs on a DirectML device, and ``detach``, which computes nothing."""
    with SimulatedDirectml() as simulated:
        for check in operator_checks(DIRECTML.type):
            for dtype in DTYPES:
                run_check(check, DIRECTML, dtype)
    return simulated.operators | {"detach"}


# Families that use between them what the first eight do not. transformers 4, which the DirectML extra pins, refuses
# some of them, those with latent attention too: their cases show that only transformers keeps them from DirectML.
FEATURED: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]}),
    ("olmo", {"clip_qkv": 1.5}),
    ("stablelm", {"qk_layernorm": True}),
    ("gemma4_text", {"sliding_window": 7, "attention_k_eq_v": True}),
    *((family, {}) for family in ("apertus", "olmo2", "ministral3", "nanochat", "minicpm3")),
]


CASES = [*((architecture, {}) for architecture in sorted({*ARCHITECTURES} - {*RECURRENT})), *FEATURED]


# Operators and their shapes do not depend on the dtype but where a norm or a softmax is computed in float32, which the
# families have in common. So each family runs in one dtype, every second one in float16, and in the other if slow.
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("architecture", "settings", "dtype"),
    [
        pytest.param(*case, dtype, marks=() if (place % 2 == 0) == (dtype is torch.float32) else pytest.mark.slow)
        for place, case in enumerate(CASES)
        for dtype in DTYPES
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_a_whole_generation_keeps_to_the_rules(
    device: SimulatedDirectml, architecture: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    with device.left():
        model = tiny_model(architecture, seed=3, **settings)
        draft = draft_of(model)
    speculation = SpeculationConfig(depth=3, adaptive=False, drafters=("lookup",))
    engine = engine_of(loaded_on_device("target", model, dtype), loaded_on_device("draft", draft, dtype), speculation)
    outputs = finished(engine.generate(work()))
    counters = engine.counters()
    assert counters.preemptions > 0
    assert counters.cached_prompt_tokens > 0
    assert 0 < counters.accepted_tokens < counters.draft_tokens
    engine.check_integrity()
    assert device.operators <= tried_by_doctor()
    if dtype is torch.float32:
        with device.left():
            host = engine_of(loaded_on_host("target", model, dtype), loaded_on_host("draft", draft, dtype), speculation)
            expected = finished(host.generate(work()))
        # Sampled sequences draft otherwise here: their outputs have the same distribution and are others.
        greedy = [index for index, one in enumerate(work()) if one.sampling_params.is_greedy]
        assert len(greedy) == len(outputs) - 1
        assert [outputs[index] for index in greedy] == [expected[index] for index in greedy]


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", SLOW_FLOAT16, ids=str)
def test_adapters_keep_to_the_rules_and_to_few_shapes(device: SimulatedDirectml, dtype: torch.dtype) -> None:
    with device.left():
        model = tiny_model(seed=3)
        adapters = [random_adapter(name, model, ADAPTED, rank) for rank, name in enumerate("abc", 2)]
    speculation = SpeculationConfig(depth=3, adaptive=False, drafters=("lookup",))
    target = loaded_on_device("target", model, dtype)
    engine = engine_of(target, loaded_on_device("draft", model, dtype), speculation, adapters=adapters)
    owners = [None, "a", "b", "a", None, "c", "b"]
    asked = [replace(one, adapter=owner) for one, owner in zip(work(), owners, strict=True)]
    outputs = finished(engine.generate(asked))
    engine.check_integrity()
    assert device.operators <= tried_by_doctor()
    shapes = len(device.shapes)
    # The same requests by other adapters: whichever are in a step, shapes are the same.
    again = [replace(one, request_id=f"again{one.request_id}", adapter=one.adapter and "c") for one in asked]
    finished(engine.generate(again))
    assert len(device.shapes) <= 1.1 * shapes
    if dtype is torch.float32:
        with device.left():
            host = engine_of(
                loaded_on_host("target", model, dtype), loaded_on_host("draft", model, dtype), speculation,
                adapters=adapters,
            )  # fmt: skip
            expected = finished(host.generate(asked))
        greedy = [index for index, one in enumerate(asked) if one.sampling_params.is_greedy]
        assert [outputs[index] for index in greedy] == [expected[index] for index in greedy]


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", SLOW_FLOAT16, ids=str)
def test_measuring_costs_and_adaptive_depths_keep_to_the_rules(device: SimulatedDirectml, dtype: torch.dtype) -> None:
    model = tiny_model(seed=3)
    speculation = SpeculationConfig(adaptive=True, drafters=("lookup",), max_depth=3)
    engine = engine_of(
        loaded_on_device("target", model, dtype), loaded_on_device("draft", draft_of(model), dtype), speculation
    )
    assert engine.cost_profile() is not None
    finished(engine.generate(work()))


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("num_blocks", [1, 2, 7, 40])
def test_costs_are_measured_in_any_pool_without_writing_a_row_twice(device: SimulatedDirectml, num_blocks: int) -> None:
    runner = ModelRunner(
        loaded_on_device("t", tiny_model(seed=3), torch.float32).decoder,
        CacheConfig(num_blocks=num_blocks, block_size=4),
    )
    measure_costs(runner, runner, max_batch_size=4, max_depth=2)


def test_logits_that_are_not_finite_are_cleared_within_the_rules(device: SimulatedDirectml) -> None:
    engine = engine_of(
        loaded_on_device("target", tiny_model(seed=3), torch.float32), None, SpeculationConfig(depth=0), num_blocks=80
    )
    requests = work()
    for one in requests:
        engine.add_request(one)
    results = engine.step()
    pool = opened(engine).target.cache.values[0]
    assert isinstance(pool, DirectmlTensor)
    pool.host[4:12] = float("nan")
    while engine.has_unfinished():
        results += engine.step()
    assert len(finished(results)) == len(requests)
    assert bool(torch.isfinite(pool.host).all())


@pytest.mark.parametrize("architecture", RECURRENT)
def test_recurrent_layers_are_refused(tmp_path: Path, architecture: str) -> None:
    folder = str(save_checkpoint(tmp_path, tiny_model(architecture)))
    with pytest.raises(UnsupportedArchitectureError, match=r"has recurrent layers, .*; use --device cpu"):
        load_models(folder, "none", device=DIRECTML, dtype="float32", home=tmp_path, on_progress=lambda _: None)


def test_a_bfloat16_checkpoint_is_loaded_onto_the_device(
    device: SimulatedDirectml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = types.ModuleType("torch_directml")
    for name, value in {"is_available": True, "device_count": 1, "device": DIRECTML, "device_name": "Radeon"}.items():
        setattr(module, name, lambda *_, value=value: value)
    monkeypatch.setitem(sys.modules, "torch_directml", module)
    folder = save_checkpoint(tmp_path / "model", copy_of(tiny_model(seed=3), torch.bfloat16))
    models = load_models(
        str(folder), str(folder), device=get_device(), dtype="auto", home=tmp_path, on_progress=lambda _: None
    )
    assert models.target.decoder.dtype is torch.float16
    config = EngineConfig(speculation=SpeculationConfig(depth=3, adaptive=False))
    engine = Engine(models, config, CacheConfig(num_blocks=80, block_size=4))
    assert engine.info.device == "DirectML: Radeon"
    results = engine.generate([request("a", [3, 4, 5], max_tokens=20, ignore_eos=True)])
    finished(results)
    assert results[0].acceptance_rate == 1.0


# Tests of the test


def test_a_write_that_directml_lacks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(cache: PagedKVCache, layer: int, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        (head_dim,) = cache.geometry.head_dims
        for pool, new in ((cache.keys[layer], keys), (cache.values[layer], values)):
            pool.view(-1, head_dim).index_copy_(0, rows, new)

    monkeypatch.setattr(PagedKVCache, "write", write)
    with SimulatedDirectml() as device:
        engine = engine_of(
            loaded_on_device("t", tiny_model(seed=3), torch.float32), None, SpeculationConfig(depth=0), num_blocks=80
        )
        finished(engine.generate(work()))
    (breach,) = device.breaches
    assert breach.startswith("index_copy has no kernel")


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype).to(DIRECTML)


def rows(*values: int) -> torch.Tensor:
    return torch.tensor(values).to(DIRECTML)


@pytest.mark.parametrize(
    ("forbidden", "breach"),
    [
        (lambda: on_device(3, dtype=torch.bfloat16), "of torch.bfloat16"),
        (lambda: on_device(3).double(), "of torch.float64"),
        (lambda: torch.ops.aten.index(on_device(3), [rows(0, 2)]), "index has no kernel"),
        (lambda: on_device(3).index_add_(0, rows(0), on_device(1)), "index_add has no kernel"),
        (lambda: on_device(1, 2, 1, 2, 1), "more than 4 dimensions"),
        (lambda: on_device(6).view(1, 1, 2, 3, 1), "more than 4 dimensions"),
        (lambda: on_device(5).narrow(0, 1, 2).mul_(2.0), "writes into a view with an offset"),
        (lambda: on_device(5, dtype=torch.bool).logical_not_(), "changes booleans in place"),
        (lambda: torch.bmm(on_device(2, 3, 4), on_device(2, 5, 4).transpose(1, 2)), "bmm of a tensor that is not"),
        (lambda: on_device(3, 2).split((3, 0)), "split_with_sizes of a tensor without elements"),
        (lambda: on_device(4, 3).t().mean(dim=-1), "mean of a tensor that is not"),
        (lambda: on_device(3) + torch.zeros(3), "mixes tensors of host and device"),
        (lambda: on_device(1).item(), "waits for the device"),
        (
            lambda: on_device(5, 2).scatter_(0, rows(1, 1).unsqueeze(1).expand(2, 2), on_device(2, 2)),
            "scatter writes a row twice",
        ),
        (
            lambda: on_device(5, 3).scatter_(0, rows(1, 2).unsqueeze(1).expand(2, 2), on_device(2, 2)),
            "differ in more than one dimension",
        ),
    ],
)
@torch.no_grad()
def test_every_rule_is_enforced(forbidden: Any, breach: str) -> None:
    with SimulatedDirectml() as device:
        forbidden()
    assert any(breach in found for found in device.breaches), device.breaches


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="there is no torch 2.4.1 for this Python")
def test_all_of_it_on_the_releases_that_torch_directml_pins(tmp_path: Path) -> None:
    """The wheel of torch 2.4.1 is large, and the environment is thrown away."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = ("-m", "pip", "install", "--quiet", "torch==2.4.1", "transformers>=4.57,<4.58", f"{ROOT}[test]")
    subprocess.run([python, *install], check=True)
    folder = ROOT / "tests" / "unit" / "engine"
    names = ("devices/test_directml_operators.py", "devices/test_directml_steps.py", "speculation/test_draft_model.py")
    tests = [folder / name for name in names]
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
