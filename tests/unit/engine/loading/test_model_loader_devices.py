from __future__ import annotations

import gc
import sys
import types
import weakref
from typing import TYPE_CHECKING

import psutil
import pytest
import torch

from helix_jobs.engine.devices import devices
from helix_jobs.engine.devices.devices import free_memory, memory_share_of_others
from helix_jobs.engine.loading.model_loader import cleanup_memory, describe_device, get_device, resolve_dtype
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
DIRECTML = torch.device("privateuseone", 0)


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing but a CPU, whatever the tests really run on."""
    monkeypatch.setitem(sys.modules, "torch_directml", None)
    for backend in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)


@pytest.fixture
def directml(bare_machine: None, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """torch_directml as its API is, with two cards."""
    module = types.ModuleType("torch_directml")
    module.is_available = lambda: True  # type: ignore[attr-defined]
    module.device_count = lambda: 2  # type: ignore[attr-defined]
    module.device = lambda index=0: torch.device("privateuseone", index)  # type: ignore[attr-defined]
    module.device_name = lambda index: f"Radeon {index}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_directml", module)
    return module


def _add(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    for kind in kinds:
        backend = torch.backends.mps if kind == "mps" else getattr(torch, kind)
        monkeypatch.setattr(backend, "is_available", lambda: True)
        if kind != "mps":
            monkeypatch.setattr(backend, "device_count", lambda: 1)


def test_directml_comes_first(directml: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, "cuda", "xpu", "mps")
    assert get_device() == get_device("auto") == get_device("directml") == DIRECTML
    assert describe_device(get_device()) == "DirectML: Radeon 0"


@pytest.mark.parametrize(
    ("kinds", "first"),
    [(("cuda", "xpu", "mps"), "cuda:0"), (("xpu", "mps"), "xpu:0"), (("mps",), "mps"), ((), "cpu")],
)
def test_then_cuda_xpu_mps_cpu(
    bare_machine: None, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], first: str
) -> None:
    _add(monkeypatch, *kinds)
    assert get_device() == torch.device(first)


def test_a_directml_import_that_raises_oserror_is_passed_over(
    bare_machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "torch_directml")
    (tmp_path / "torch_directml.py").write_text("raise OSError('libd3d12.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert get_device() == CPU
    with pytest.raises(ConfigurationError) as caught:
        get_device("directml")
    assert str(caught.value) == (
        "device 'directml' is not available: torch-directml cannot be imported "
        "(OSError: libd3d12.so: cannot open shared object file); there is cpu"
    )


def test_directml_without_a_device_is_passed_over(directml: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directml, "is_available", lambda: False)
    assert get_device() == CPU
    with pytest.raises(ConfigurationError, match="finds no DirectX 12 device"):
        get_device("directml")


def test_directml_that_is_not_installed_says_how(bare_machine: None) -> None:
    with pytest.raises(ConfigurationError, match=r'not installed: pip install -e "\.\[directml\]"'):
        get_device("dml")


@pytest.mark.parametrize(("name", "index"), [("directml:1", 1), ("dml:0", 0), ("privateuseone:1", 1), ("DirectML", 0)])
def test_a_directml_card_is_chosen_by_name(directml: types.ModuleType, name: str, index: int) -> None:
    assert get_device(name) == torch.device("privateuseone", index)


def test_a_name_overrides_the_order(directml: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _add(monkeypatch, "cuda")
    assert get_device("cpu") == CPU
    assert get_device("rocm") == get_device("cuda") == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:-1", ""])
def test_an_unknown_name_lists_what_is_accepted(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is unknown; use directml, cuda, xpu, mps, cpu"):
        get_device(name)


@pytest.mark.parametrize("name", ["cuda", "xpu:0", "mps", "cpu:1"])
def test_a_device_that_is_not_there_lists_what_is(bare_machine: None, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"device '{name}' is not available; there is cpu"):
        get_device(name)


def test_an_index_past_the_last_card(directml: types.ModuleType) -> None:
    with pytest.raises(ConfigurationError, match="device 'directml:2' is not available; there is directml, cpu"):
        get_device("directml:2")


def test_the_cpu_is_described_by_its_threads() -> None:
    assert describe_device(CPU) == f"CPU: {torch.get_num_threads()} threads"


@pytest.mark.parametrize(
    ("device", "name", "checkpoint", "expected"),
    [
        (CPU, "auto", torch.float32, torch.float32),
        (CPU, "auto", torch.float16, torch.float32),
        (CPU, "float16", torch.bfloat16, torch.float16),
        (CPU, "bfloat16", torch.float32, torch.bfloat16),
        (DIRECTML, "auto", torch.bfloat16, torch.float16),
        (DIRECTML, "auto", None, torch.float16),
        (DIRECTML, "auto", torch.float16, torch.float16),
        (DIRECTML, "auto", torch.float32, torch.float32),
        (DIRECTML, "float32", torch.bfloat16, torch.float32),
    ],
)
def test_dtypes(device: torch.device, name: str, checkpoint: torch.dtype | None, expected: torch.dtype) -> None:
    assert resolve_dtype(name, device, checkpoint) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_on_a_cpu_needs_its_instructions(
    monkeypatch: pytest.MonkeyPatch, *, supported: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    assert resolve_dtype("auto", CPU, torch.bfloat16) == resolve_dtype("auto", CPU, None) == expected


def test_bfloat16_is_refused_on_directml() -> None:
    with pytest.raises(ConfigurationError, match="does not exist on DirectML; use auto, float16 or float32"):
        resolve_dtype("bfloat16", DIRECTML, torch.bfloat16)


def test_free_memory_of_the_cpu_is_below_its_total() -> None:
    free = free_memory(CPU)
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


@pytest.mark.parametrize(("limit", "expected"), [("1000000", 1000000 - 900000 + 50000), ("max", None)])
def test_a_containers_limit_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, expected: int | None
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 800000\ninactive_file 50000\n")
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    free = free_memory(CPU)
    assert free is not None
    assert free == expected if expected is not None else free > 1_000_000


def test_directml_cannot_tell_its_free_memory() -> None:
    assert free_memory(DIRECTML) is None


@pytest.mark.parametrize("device", [CPU, DIRECTML])
def test_cleanup_collects_what_only_refers_to_itself(device: torch.device) -> None:
    class Node:
        me: object

    gc.disable()
    try:
        node = Node()
        node.me = node
        gone = weakref.ref(node)
        del node
        assert gone() is not None
        cleanup_memory(device)
        assert gone() is None
    finally:
        gc.enable()


class Card:
    """torch.cuda as far as memory is concerned: 10,000 bytes, of which 2,000 are free."""

    memory_reserved = staticmethod(lambda _: 3000)
    mem_get_info = staticmethod(lambda _: (2000, 10_000))


def test_what_others_hold_of_a_card_is_neither_free_nor_this_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", Card)
    assert memory_share_of_others(torch.device("cuda", 0)) == 0.5
    monkeypatch.setattr(Card, "memory_reserved", staticmethod(lambda _: 9000))
    assert memory_share_of_others(torch.device("cuda", 0)) == 0.0


def test_a_device_that_does_not_tell_what_is_free_says_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.device) -> None:
        raise RuntimeError("not supported")

    monkeypatch.setattr(torch, "xpu", types.SimpleNamespace(mem_get_info=fail))
    assert memory_share_of_others(torch.device("xpu", 0)) is None
    assert memory_share_of_others(DIRECTML) is None
    assert memory_share_of_others(torch.device("mps")) is None


def test_on_a_cpu_the_machine_s_memory_counts_without_this_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = types.SimpleNamespace(total=1_000_000_000_000, available=400_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    share = memory_share_of_others(CPU)
    assert share is not None
    assert 0.5 < share < 0.6
