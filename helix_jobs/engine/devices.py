"""What each device can hold and compute: dtypes, free memory, giving memory back.

DirectML has no bf16 and no way to return memory; its rules stand beside each choice. Choosing the device itself is
``model_loader.get_device``.
"""

from __future__ import annotations

import gc
import logging
import re
from pathlib import Path
from typing import Final

import psutil
import torch

from helix_jobs.errors import ConfigurationError

logger = logging.getLogger(__name__)

DIRECTML_DEVICE_TYPE: Final = "privateuseone"
_DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_CGROUP: Final = Path("/sys/fs/cgroup")
# As each backend says it: CUDA, ROCm, XPU and MPS; the allocators of DirectML (two) and of the CPU (two).
_OUT_OF_MEMORY: Final = re.compile(
    r"out.of.(device.|host.)?(memory|resources)|blas_status_alloc_failed"
    r"|could not allocate tensor|oom when allocating|can't allocate memory|not enough memory",
    re.IGNORECASE,
)


def resolve_dtype(name: str, device: torch.device, checkpoint_dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype to compute in.

    ``auto`` keeps the checkpoint's dtype where the device computes it well, else takes the nearest that loses least.
    A checkpoint that does not say (None) counts as bfloat16, the usual training dtype.

    Trade-off: float16 checkpoints run in float32 on a CPU: twice the memory, but no mantissa is lost and few CPUs
    multiply float16 fast. ``--dtype bfloat16`` takes the other side.

    Raises:
        ConfigurationError: An unknown name, or bfloat16 asked of DirectML, where it is fatal.
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


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on the device; None where nobody can tell (DirectML)."""
    if device.type == "cpu":
        return _free_host_memory()
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "xpu":
        if hasattr(torch.xpu, "mem_get_info"):
            return int(torch.xpu.mem_get_info(device)[0])
        total: int = torch.xpu.get_device_properties(device).total_memory
        return total - torch.xpu.memory_allocated(device)
    if device.type == "mps":
        # Unified memory: the driver's own limit and what the system has left both bind.
        limit = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return min(int(limit), _free_host_memory())
    return None


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
    """File cache the kernel drops on demand counts as used in ``memory.current``."""
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
    # DirectML keeps what it reserved; there is no call to give it back.


def check_alive(device: torch.device) -> None:
    """Compute next to nothing on the device and wait for it; raises whatever the device does if it cannot."""
    torch.ones(2, device=device).add(1.0).cpu()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))
