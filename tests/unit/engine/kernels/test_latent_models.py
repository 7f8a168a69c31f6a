"""Models with latent attention: torch attends, and compiled kernels compute the rest of a target and its int8 copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.config import EngineConfig, SpeculationConfig
from helix_jobs.engine.kernels.cpu.feed_forward import CompiledFeedForward
from helix_jobs.engine.kernels.cpu.int8_linear import CompiledInt8Linear
from helix_jobs.engine.kernels.cpu.kernels import COMMON_HEAD_DIM, load_kernels
from helix_jobs.engine.kernels.cpu.native_decoder import native_of, with_native
from helix_jobs.engine.kernels.cpu.rms_norm import CompiledRmsNorm
from helix_jobs.engine.loaded_models import LoadedModel, LoadedModels
from helix_jobs.engine.loading import load_engine
from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from tests.unit.engine.kernels.native_models import HEAD_DIM, compiled_engine
from tests.unit.engine.tiny_models import (
    CPU,
    EOS,
    VOCAB_SIZE,
    copy_of,
    greedy_beside_each,
    loaded,
    request,
    roughen,
    tiny_model,
    tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels

pytestmark = pytest.mark.skipif(TRANSFORMERS_MAJOR < 5, reason="latent attention is served with transformers 5")


@pytest.mark.parametrize("architecture", ["minicpm3", "deepseek_v3"])
def test_an_int8_copy_drafts_for_its_target(compiled_folder: Path, architecture: str) -> None:
    model = roughen(tiny_model(architecture, seed=3))
    native = load_kernels(compiled_folder, torch.float32, CPU, HEAD_DIM)
    target = with_native(build_decoder(copy_of(model)), native)
    copied = with_native(quantize(build_decoder(copy_of(model))), native)
    for decoder in (target, copied):
        assert decoder.kernels == "compiled, attention torch"
        latent = decoder.attention.spec.layers[0].latent
        assert latent is not None
        assert isinstance(latent.norm, CompiledRmsNorm)
        layer = decoder.layers[0]
        assert isinstance(layer.feed_forward, CompiledFeedForward)
        assert layer.query_lift is not None
        assert isinstance(layer.query_lift.norm, CompiledRmsNorm)
    assert all(isinstance(linear, CompiledInt8Linear) for linear in copied.linears())
    models = LoadedModels(
        target=LoadedModel("tiny", target),
        draft=LoadedModel("int8", copied, is_int8=True, is_copy=True),
        tokenizer=tokenizer(),
        eos_token_ids=frozenset((EOS,)),
        vocab_size=VOCAB_SIZE,
        max_context=256,
    )
    engine = compiled_engine(models, speculation=SpeculationConfig(depth=3, adaptive=False), token_budget=12)
    prompts = [[3, 4, 5, 6, 7], [9], [(5 * i) % (VOCAB_SIZE - 1) + 1 for i in range(30)]]
    results = engine.generate(request(str(i), prompt, max_tokens=16) for i, prompt in enumerate(prompts))
    outputs = [result.output_token_ids for result in results]
    assert outputs == greedy_beside_each(model, prompts, outputs, 16)
    assert engine.counters().accepted_tokens > 0


@pytest.mark.parametrize(("architecture", "head_dim"), [("youtu", COMMON_HEAD_DIM), ("llama", 32)])
def test_kernels_are_compiled_for_heads_that_they_attend_with(
    compiled_folder: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, head_dim: int
) -> None:
    asked = []

    def compiled(_: Path, dtype: torch.dtype, device: torch.device, width: int) -> NativeKernels:
        asked.append(width)
        return load_kernels(compiled_folder, dtype, device, HEAD_DIM)

    monkeypatch.setattr(load_engine, "load_kernels", compiled)
    if architecture == "llama":
        monkeypatch.setattr(load_engine, "with_native", lambda decoder, _: decoder)  # the kernels are for other heads
    models = loaded(tiny_model(architecture, head_dim=32))
    load_engine.with_compiled_kernels(models, "on", compiled_folder)
    assert asked == [head_dim]


def test_a_model_whose_attention_is_plain_has_compiled_kernels_all_the_same(
    compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = load_kernels(compiled_folder, torch.float32, CPU, HEAD_DIM)
    monkeypatch.setattr(load_engine, "load_kernels", lambda *_: native)
    plain = loaded(tiny_model("youtu"))
    compiled = load_engine.with_compiled_kernels(plain, "on", compiled_folder)
    assert native_of(compiled.target.decoder) is native
    again = load_engine.with_compiled_kernels(compiled, "on", compiled_folder)
    assert again.target.decoder is compiled.target.decoder, "it is not made anew"
    config = EngineConfig()
    kernels = [load_engine._identity(models, config, "auto")["kernels"] for models in (plain, compiled)]
    assert kernels == ["torch", "compiled, attention torch"], "costs are measured for each"
    info = compiled_engine(compiled, speculation=SpeculationConfig(depth=0), num_blocks=8).info
    assert info.kernels == "compiled, attention torch"
