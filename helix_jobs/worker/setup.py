"""What a worker's answers depend on, in one JSON object of the worker's row, for the manifests of batches."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from helix_jobs._version import __version__

if TYPE_CHECKING:
    from helix_jobs.engine.protocol import EngineInfo
    from helix_jobs.settings import Settings

# Libraries that have a part in what an answer says.
_LIBRARIES: Final = ("torch", "transformers", "tokenizers", "llguidance")
# What stands in a setup under "digests" until they are read.
NOT_READ: Final = "not read yet"


def worker_setup(settings: Settings, info: EngineInfo) -> dict[str, Any]:
    """Describe a worker by what its answers depend on, as far as it takes no time; see ``ModelDigests``.

    A key without a value is left out.
    """
    depth = "auto" if info.speculation_depth is None else info.speculation_depth
    found = {
        "helix": __version__,
        "engine": settings.engine,
        "target": {"name": info.target_model},
        "draft": None if info.draft_model is None else {"name": info.draft_model},
        "digests": NOT_READ if settings.engine == "helix" else None,
        "dtype": info.dtypes,
        "device": info.device,
        "kernels": info.kernels,
        "speculation_depth": depth,
        "is_reproducible": info.is_reproducible,
        "max_batch_size": info.max_batch_size,
        "max_model_len": info.max_model_len,
        "kv_cache_bytes": info.kv_cache_bytes or None,
        "libraries": _versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return {key: value for key, value in found.items() if value is not None}


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
