"""What loading takes of the device's memory and of the machine's, on devices made of CPU tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves

from helix_jobs.engine.attention import cache_pools
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.devices import devices
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading import checkpoint, model_loader, model_memory
from helix_jobs.engine.loading.model_loader import load_models
from helix_jobs.errors import InsufficientMemoryError, ModelError
from tests.unit.engine.devices.simulated_directml import DIRECTML, DirectmlTensor, SimulatedDirectml
from tests.unit.engine.model_files import save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import CPU, copy_of, loaded, request, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.loaded_models import LoadedModels

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")

CUDA = torch.device("cuda", 0)
OUT_OF_MEMORY = RuntimeError("Could not allocate tensor with 99 bytes. There is not enough GPU video memory available!")


class CountingDirectml(SimulatedDirectml):
    """Counts the bytes of every tensor that was ever allocated on the device, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage(one) for one in tree_leaves((args, kwargs)) if isinstance(one, DirectmlTensor)}
        result = super().__torch_dispatch__(func, _types, args, kwargs)
        for one in tree_leaves(result):
            if isinstance(one, DirectmlTensor) and _storage(one) not in inputs:
                self.allocated += one.host.nbytes
        return result


def _storage(tensor: DirectmlTensor) -> int:
    return tensor.host.untyped_storage().data_ptr()


def load_on(device: torch.device, target: Path, draft: str = "none", dtype: str = "auto") -> LoadedModels:
    return load_models(str(target), draft, device=device, dtype=dtype, home=target, on_progress=lambda _: None)


# The device


@pytest.mark.thorough(fast=5)
@pytest.mark.parametrize("architecture", ["llama", "gemma", "phi3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_only_finished_tensors_reach_the_device_and_a_tied_head_stays_tied(
    tmp_path: Path, architecture: str, *, is_tied: bool
) -> None:
    model = copy_of(tiny_model(architecture, seed=3, tie_word_embeddings=is_tied), torch.bfloat16)
    folder = save_checkpoint(tmp_path / "m", model)
    needed = sum(parameter.numel() for parameter in model.parameters()) * torch.float16.itemsize
    # Norms are kept in float32 too, and one step's worth of the trial pass is not of the model.
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1) * 4
    with pytest.MonkeyPatch.context() as patch, CountingDirectml() as device:
        patch.setattr(model_loader, "logits_are_finite", lambda *_: True)
        decoder = load_on(DIRECTML, folder).target.decoder
        assert decoder.dtype is torch.float16
        assert needed <= device.allocated <= needed + norms + 2
        assert (decoder.head.weight is decoder.embedding) is is_tied  # type: ignore[attr-defined]
    assert not device.breaches


def test_an_int8_draft_is_asked_no_memory_of_a_device_that_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default draft is ``lookup+int8``; off the CPU its int8 copy is left out."""
    model = tiny_model()
    folder = save_checkpoint(tmp_path, model)
    needed = 4 * sum(p.numel() for p in model.parameters()) + 256 * 2 * 2 * 2 * 8 * 4
    monkeypatch.setattr(model_memory, "describe_device", str)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    read: list[str] = []

    def stop(source: Any, *_: Any, **__: Any) -> None:
        read.append(source.checkpoint.name)
        raise ModelError("read")

    monkeypatch.setattr(model_loader, "_read", stop)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed)
    with pytest.raises(ModelError, match="read"):
        load_on(CUDA, folder, "int8", "float32")
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed - 1)
    with pytest.raises(InsufficientMemoryError, match="cuda:0 has"):
        load_on(CUDA, folder, "int8", "float32")
    assert read == [str(folder)]


def test_an_int8_target_needs_no_room_for_an_int8_copy_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        model_loader, "check_device_memory", lambda *_, has_int8_copy, **__: asked.append(has_int8_copy)
    )
    folder = save_checkpoint(tmp_path)
    for dtype in ("int8", "float32"):
        load_on(CPU, folder, "int8", dtype)
    assert asked == [False, True]


def _cuda(monkeypatch: pytest.MonkeyPatch, *, free: int | Exception, total: int, reserved: int, allocated: int) -> None:
    def mem_get_info(_: object) -> tuple[int, int]:
        if isinstance(free, Exception):
            raise free
        return free, total

    class Properties:
        total_memory = total

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)


def test_memory_that_torch_keeps_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    _cuda(monkeypatch, free=400, total=24_000, reserved=23_600, allocated=16_100)
    assert devices.free_memory(CUDA) == 7_900


@pytest.mark.parametrize("free", [RuntimeError("HIP error: invalid argument"), 25_000])
def test_a_driver_that_cannot_tell_what_is_free_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, free: int | Exception
) -> None:
    _cuda(monkeypatch, free=free, total=24_000, reserved=3_000, allocated=2_000)
    assert devices.free_memory(CUDA) == int(24_000 * 0.7) - 2_000


def test_an_old_release_that_counts_nothing_has_a_share_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    _cuda(monkeypatch, free=1, total=24_000, reserved=0, allocated=0)
    monkeypatch.delattr(torch.cuda, "memory_allocated")
    assert devices.free_memory(CUDA) == int(24_000 * 0.7)


# The host


def test_a_model_in_one_dtype_is_read_as_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in another one, all of it would be in memory before the first tensor goes to the device."""
    asked: list[torch.dtype] = []
    read = model_loader.read_weights
    monkeypatch.setattr(model_loader, "read_weights", lambda s, dtype: (asked.append(dtype), read(s, dtype))[1])
    model = copy_of(tiny_model(seed=3), torch.bfloat16)
    for dtype in ("float16", "float32", "bfloat16"):
        decoder = load_on(CPU, save_checkpoint(tmp_path / "uniform", model), dtype=dtype).target.decoder
        assert decoder.embedding.dtype is decoder.dtype is getattr(torch, dtype)
    assert asked == [torch.bfloat16] * 3
    # A norm that is stored more exactly is not rounded on its way to float32.
    model.model.norm = model.model.norm.float()
    model.model.norm.weight.fill_(1 + 2**-20)
    loaded_model = load_on(CPU, save_checkpoint(tmp_path / "mixed", model), dtype="float32")
    assert asked[3:] == [torch.float32]
    assert bool((loaded_model.target.decoder.final_norm.weight == 1 + 2**-20).all())  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_uniform", [True, False])
def test_the_machine_s_own_memory_is_checked_before_a_model_passes_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_uniform: bool
) -> None:
    name = save_checkpoint(tmp_path / "m") if is_uniform else tmp_path / "m.gguf"
    parameters = 0 if is_uniform else sum(parameter.numel() for parameter in write_gguf(name).parameters())
    source = model_loader.open_source(str(name), tmp_path, lambda _: None)
    # One dtype: its largest tensor, as it is and converted.
    needed = 4 * (2 * source.config.vocab_size * source.config.hidden_size if is_uniform else parameters)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed)
    model_memory.check_host_memory(source, torch.float32)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed - 1)
    remedy = "close other programs$" if is_uniform else "close other programs, .*or its safetensors in one dtype"
    with pytest.raises(InsufficientMemoryError, match=rf"on its way to the device: that takes .*; {remedy}"):
        model_memory.check_host_memory(source, torch.float32)


@pytest.mark.parametrize("is_uniform", [True, False])
def test_experts_that_are_merged_are_in_the_machine_s_own_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_uniform: bool
) -> None:
    model = copy_of(tiny_model("mixtral"), torch.bfloat16)
    if not is_uniform:
        model.model.norm = model.model.norm.float()
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    source = model_loader.open_source(str(save_checkpoint(tmp_path / "m", model)), tmp_path, lambda _: None)
    assert source.checkpoint.is_uniform is is_uniform
    needed = 2 * experts if is_uniform else 2 * (experts + 48)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed)
    model_memory.check_host_memory(source, torch.bfloat16)
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed - 1)
    with pytest.raises(InsufficientMemoryError, match=r"that takes .*; close other programs, or use a smaller model$"):
        model_memory.check_host_memory(source, torch.bfloat16)


def test_a_device_that_is_not_the_host_has_its_host_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_checkpoint(tmp_path / "m")
    monkeypatch.setattr(model_memory, "free_memory", lambda device: 1 if device.type == "cpu" else None)
    with SimulatedDirectml(), pytest.raises(InsufficientMemoryError, match="the machine's own memory"):
        load_on(DIRECTML, folder)


# float16


def overflowing_model() -> Any:
    """Weights within float16's range, activations beyond it."""
    model = tiny_model(seed=3)
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.mul_(3e3)
        layer.mlp.gate_proj.weight.mul_(3e3)
    return model


@pytest.mark.parametrize("device", [CPU, DIRECTML], ids=str)
def test_activations_beyond_float16_make_a_model_run_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, device: torch.device
) -> None:
    model = overflowing_model()
    assert all(bool(torch.isfinite(parameter.half()).all()) for parameter in model.parameters())
    folder = save_checkpoint(tmp_path / "m", model)
    with SimulatedDirectml() as simulated:
        models = load_on(device, folder, dtype="float16")
        engine = Engine(models, EngineConfig(speculation=SpeculationConfig(depth=0)), CacheConfig(num_blocks=8))
        (result,) = engine.generate([request("a", [3, 4, 5], max_tokens=4, ignore_eos=True)])
    assert result.error is None
    assert (engine.info.dtype, engine.info.overflows_float16) == ("float32", True)
    assert "does not fit float16's range; it runs in float32" in caplog.text
    assert not simulated.breaches


def test_a_model_that_fits_float16_stays(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model(seed=3))
    models = load_on(CPU, folder, dtype="float16")
    assert (models.target.dtype_name, models.target.overflowed) == ("float16", False)


def test_float32_that_does_not_fit_either_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = overflowing_model()
    folder = save_checkpoint(tmp_path / "m", model)
    needed = 2 * sum(p.numel() for p in model.parameters()) + 256 * 2 * 2 * 2 * 8 * 2
    monkeypatch.setattr(model_memory, "free_memory", lambda _: needed)
    with pytest.raises(InsufficientMemoryError, match="does not fit float16's range, and in float32 the models need"):
        load_on(CPU, folder, dtype="float16")


# Allocations that fail


def test_weights_that_do_not_fit_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(model_loader, "build_decoder", full)
    with pytest.raises(
        InsufficientMemoryError, match="ran out of memory while models were loaded; use a smaller model"
    ):
        load_on(CPU, save_checkpoint(tmp_path / "m"))


def test_a_host_without_memory_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    folder = save_checkpoint(tmp_path / "m")
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(InsufficientMemoryError, match="while models were loaded; use a smaller model"):
        load_on(CPU, folder)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError("Unable to allocate 9 GiB")])
def test_a_cache_that_does_not_fit_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(cache_pools, "_zeros", full)
    message = "while the KV cache was allocated; lower HELIX_KV_CACHE_MB"
    with pytest.raises(InsufficientMemoryError, match=f"{message}$"):
        Engine(loaded(tiny_model()), EngineConfig(), CacheConfig(num_blocks=8))
    with pytest.raises(InsufficientMemoryError, match=f"{message} or HELIX_MAX_BATCH_SIZE$"):  # slots hold states, too
        Engine(loaded(tiny_model("lfm2")), EngineConfig(), CacheConfig(num_blocks=8))


def test_costs_that_cannot_be_measured_for_want_of_memory_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("helix_jobs.engine.speculation.speculator.measure_costs", full)
    config = EngineConfig(speculation=SpeculationConfig(adaptive=True, drafters=("lookup",)))
    with pytest.raises(InsufficientMemoryError, match="while the cost of steps was measured; lower HELIX_KV"):
        Engine(loaded(tiny_model()), config, CacheConfig(num_blocks=80))


def test_other_faults_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="device removed"), devices.explaining_shortage(CPU, "testing", "wait"):
        raise RuntimeError("device removed")


def test_checkpoints_know_what_reading_them_copies(tmp_path: Path) -> None:
    model = copy_of(tiny_model(), torch.bfloat16)
    uniform = checkpoint.find_checkpoint(str(save_checkpoint(tmp_path / "a", model)), tmp_path, print)
    assert uniform.is_uniform
    assert uniform.copied_weights(torch.float16) == uniform.parameters
    model.model.norm = model.model.norm.float()
    mixed = checkpoint.find_checkpoint(str(save_checkpoint(tmp_path / "b", model)), tmp_path, print)
    assert not mixed.is_uniform
    assert mixed.copied_weights(torch.bfloat16) == 48
    write_gguf(tmp_path / "m.gguf")
    quantised = checkpoint.find_checkpoint(str(tmp_path / "m.gguf"), tmp_path, print)
    assert not quantised.is_uniform
    assert quantised.packed_bytes(torch.bfloat16) == 2 * quantised.parameters


def test_buffers_that_nobody_reads_do_not_count(tmp_path: Path) -> None:
    """Older releases stored the rotary frequencies in float32 beside bfloat16 weights."""
    folder = save_checkpoint(tmp_path, copy_of(tiny_model(), torch.bfloat16))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint.find_checkpoint(str(folder), tmp_path, print).is_uniform
