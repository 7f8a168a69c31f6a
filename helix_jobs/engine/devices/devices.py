"""What each device can hold and compute: dtypes, free memory, and the return of memory.

DirectML has no bf16 and no way to return memory; each choice states DirectML's rule. ``model_loader.get_device``
chooses the device itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import torch

from helix_jobs.device_names import DIRECTML_DEVICE_TYPE
from helix_jobs.engine.devices.directml_adapter import DirectmlAdapter, find_adapter
from helix_jobs.errors import ConfigurationError, InsufficientMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

logger = logging.getLogger(__name__)

_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CGROUP: Final = Path("/sys/fs/cgroup")
# Part of the memory to count on if the driver does not say how much is free: the desktop and other programs use the
# rest.
_SHARE_WITHOUT_A_WORD: Final = 0.7
# Error messages of each backend: CUDA, ROCm, XPU and MPS; the allocators of DirectML (two) and of the CPU (two).
_OUT_OF_MEMORY: Final = re.compile(
    r"out.of.(device.|host.)?(memory|resources)|blas_status_alloc_failed"
    r"|could not allocate tensor|oom when allocating|can't allocate memory|not enough memory",
    re.IGNORECASE,
)


def resolve_dtype(name: str, device: torch.device, checkpoint_dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype to compute in.

    ``auto`` keeps the checkpoint's dtype where the device computes it well, or else takes the dtype that loses least. A
    checkpoint of unknown dtype (None) counts as bfloat16, the usual training dtype.

    Trade-off: float16 checkpoints run in float32 on a CPU: twice the memory, but no mantissa is lost and few CPUs
    multiply float16 fast. ``--dtype bfloat16`` chooses the opposite.

    Raises:
        ConfigurationError: The name is unknown, or bfloat16 was asked for on DirectML, where it is fatal.
    """
    if name != "auto":
        if name not in _DTYPES:
            raise ConfigurationError(f"dtype {name!r} is unknown; use auto, {', '.join(_DTYPES)}")
        if name == "bfloat16" and device.type == DIRECTML_DEVICE_TYPE:
            raise ConfigurationError("dtype bfloat16 does not exist on DirectML; use auto, float16 or float32")
        return _DTYPES[name]
    wanted = torch.bfloat16 if checkpoint_dtype is None else checkpoint_dtype
    if wanted == torch.bfloat16:
        return torch.bfloat16 if _computes_bfloat16(device) else _without_bfloat16(device)
    if wanted == torch.float16:
        return torch.float32 if device.type == "cpu" else torch.float16
    return torch.float32


def _without_bfloat16(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.float16


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == DIRECTML_DEVICE_TYPE:
        return False
    if device.type == "cpu":
        # Without these instructions torch emulates bf16 element by element, far slower than float32.
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return supported is not None and bool(supported())
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    try:
        torch.ones(1, dtype=torch.bfloat16, device=device).add(1)
    except (RuntimeError, TypeError):  # MPS before macOS 14
        return False
    return True


def compiles_each_shape(device: torch.device) -> bool:
    """Whether the device compiles operators for each new input shape. Steps are then padded to few sizes."""
    return device.type == DIRECTML_DEVICE_TYPE


def has_dear_waits(device: torch.device) -> bool:
    """Whether copies to or from the device cost so much that a step should have only one of each.

    There each copy waits until the device has finished all its work, and the device then idles until it is given more:
    torch-directml has no streams, and a copy can take tens of milliseconds.
    """
    return device.type == DIRECTML_DEVICE_TYPE


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on the device; None if it is unknown (DirectML)."""
    if device.type == "cpu":
        return _free_host_memory()
    if device.type in ("cuda", "xpu"):
        return _free_memory_of(torch.cuda if device.type == "cuda" else torch.xpu, device)
    if device.type == "mps":
        # Unified memory: both the driver's own limit and the system's free memory apply.
        limit = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return min(int(limit), _free_host_memory())
    return None


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of the device's own memory; None for the CPU, and if it is unknown."""
    if device.type in ("cuda", "xpu"):
        backend: Any = torch.cuda if device.type == "cuda" else torch.xpu
        return int(backend.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    adapter = _directml_adapter(device)
    return None if adapter is None else adapter.memory_bytes


def memory_share_of_others(device: torch.device) -> float | None:
    """Return the share of the device's memory that other processes hold; None if it is unknown (DirectML, MPS).

    What the driver itself keeps for this process counts as others': it does not tell.
    """
    if device.type == "cpu":
        memory = psutil.virtual_memory()
        own = psutil.Process().memory_info().rss
        return max(0, int(memory.total) - int(memory.available) - own) / int(memory.total)
    if device.type not in ("cuda", "xpu"):
        return None
    backend: Any = torch.cuda if device.type == "cuda" else torch.xpu
    try:
        free, total = backend.mem_get_info(device)
    except (RuntimeError, AttributeError):  # some ROCm stacks, and torch.xpu of old releases
        logger.debug("%s does not say how much memory is free", device, exc_info=True)
        return None
    return max(0, int(total) - int(free) - int(backend.memory_reserved(device))) / int(total)


def driver_version(device: torch.device) -> str:
    """Return a text that identifies the driver; empty for the CPU, and if the driver is unknown."""
    if device.type == "cuda":
        # The driver's version, in CUDA's or HIP's numbering. The function is private, but there is no other.
        ask = getattr(torch._C, "_cuda_getDriverVersion", None)  # noqa: SLF001
        return f"{torch.version.hip or torch.version.cuda} {'' if ask is None else ask()}".strip()
    if device.type == "xpu":
        return str(getattr(torch.xpu.get_device_properties(device), "driver_version", ""))
    if device.type == "mps":
        return platform.mac_ver()[0]
    adapter = _directml_adapter(device)
    return "" if adapter is None else adapter.driver


def prepare_device(device: torch.device) -> None:
    """Set torch's options: sums of products are taken in float32, also in bfloat16 and float16 on CUDA.

    Trade-off: adding up partial sums in the narrow type is a little faster, and rounds differently with the number of
    rows.
    """
    if device.type == "cuda":
        matmul = torch.backends.cuda.matmul
        matmul.allow_bf16_reduced_precision_reduction = False
        matmul.allow_fp16_reduced_precision_reduction = False


def _directml_adapter(device: torch.device) -> DirectmlAdapter | None:
    if device.type != DIRECTML_DEVICE_TYPE:
        return None
    module, _ = import_directml()
    return None if module is None else find_adapter(str(module.device_name(device.index or 0)))


def _free_memory_of(backend: Any, device: torch.device) -> int:  # noqa: ANN401  (torch.cuda or torch.xpu)
    """The driver's free memory, and the memory that torch keeps without using it."""
    total = int(backend.get_device_properties(device).total_memory)
    in_use = 0
    try:
        in_use = int(backend.memory_allocated(device))
        free = int(backend.mem_get_info(device)[0])
        if free > total:
            raise RuntimeError(f"{free} bytes of {total} are free")  # noqa: TRY301  (as wrong as an error)
    except (RuntimeError, AttributeError):  # some ROCm stacks, and torch.xpu of old releases
        logger.debug("%s does not say how much memory is free", device, exc_info=True)
        return max(0, int(total * _SHARE_WITHOUT_A_WORD) - in_use)
    return free + int(backend.memory_reserved(device)) - in_use


def _free_host_memory() -> int:
    available = int(psutil.virtual_memory().available)
    try:  # a container's limit is tighter than the host's memory
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        inactive = _cgroup_inactive_file()
    except (OSError, ValueError):
        return available
    return available if limit == "max" else max(0, min(available, int(limit) - used + inactive))


def _cgroup_inactive_file() -> int:
    """Bytes of file cache, which ``memory.current`` counts as used although the kernel drops them on demand."""
    for line in (_CGROUP / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def cleanup_memory(device: torch.device) -> None:
    """Collect garbage and return cached memory to the device; the engine's out-of-memory hook."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "cpu":
        _trim()
    # DirectML keeps what it reserved; there is no call to give it back.


def _trim() -> None:
    """Let glibc give back freed memory, which it keeps between what is in use; other libraries do so by themselves."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # no glibc
            ctypes.CDLL(None).malloc_trim(0)


def check_alive(device: torch.device) -> None:
    """Compute a tiny result on the device and wait for it; raises the device's own error if it fails."""
    torch.zeros(2, device=device).add(1.0).cpu()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def explaining_shortage(device: torch.device, activity: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory in the block into an error message for the user.

    Raises:
        InsufficientMemoryError: The device or the host had no memory left.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # The traceback's frames would keep everything allocated so far.
        cause = error.with_traceback(None)
    else:
        return
    raise InsufficientMemoryError(f"{describe_device(device)} ran out of memory while {activity}; {remedy}") from cause


def describe_device(device: torch.device) -> str:
    """Return the device's name for display, such as ``DirectML: AMD Radeon RX 7900 XTX``."""
    if device.type == DIRECTML_DEVICE_TYPE:
        module, _ = import_directml()
        return f"DirectML: {module.device_name(device.index or 0)}" if module is not None else "DirectML"
    if device.type == "cuda":
        family = "ROCm" if torch.version.hip is not None else "CUDA"
        return f"{family}: {torch.cuda.get_device_name(device)}"
    if device.type == "xpu":
        return f"XPU: {torch.xpu.get_device_name(device)}"
    if device.type == "mps":
        return "MPS: Apple GPU"
    return f"CPU: {torch.get_num_threads()} threads"


def import_directml() -> tuple[ModuleType | None, str]:
    """The torch_directml module if it can be used, else why not."""
    try:
        module = importlib.import_module("torch_directml")
        if not module.is_available():
            return None, "torch-directml finds no DirectX 12 device"
    except ImportError:
        return None, 'torch-directml is not installed: pip install -e ".[directml]" on Windows or WSL'
    except Exception as error:  # on Linux without WSL the import raises OSError: libd3d12.so
        logger.debug("torch_directml cannot be imported", exc_info=True)
        return None, f"torch-directml cannot be imported ({type(error).__name__}: {error})"
    return module, ""
