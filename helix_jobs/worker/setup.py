"""What a worker's answers depend on, in one JSON object of the worker's row, for the manifests of batches."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from helix_jobs._version import __version__
from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.protocol import EngineInfo
    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)

# Libraries that have a part in what an answer says.
_LIBRARIES: Final = ("torch", "transformers", "tokenizers", "llguidance")


def worker_setup(settings: Settings, info: EngineInfo, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Describe a worker by what its answers depend on.

    A key without a value is left out. A digest that cannot be had keeps no worker from its work.
    """
    digests = _digests(settings, on_progress) if settings.engine == "helix" else {}
    depth = "auto" if info.speculation_depth is None else info.speculation_depth
    found = {
        "helix": __version__,
        "engine": settings.engine,
        "target": {"name": info.target_model, "digest": digests.get("target")},
        "draft": None if info.draft_model is None else {"name": info.draft_model, "digest": digests.get("draft")},
        "adapters": digests.get("adapters") or None,
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
    return _without_nothing(found)


def _digests(settings: Settings, on_progress: Callable[[str], None]) -> dict[str, Any]:
    from helix_jobs.engine.loading.model_digest import served_digests

    try:
        found = served_digests(settings, on_progress)
    except (HelixError, OSError) as error:
        logger.warning("manifests will lack the digests of this worker's models: %s", error)
        return {}
    return {"target": found.target, "draft": found.draft, "adapters": dict(found.adapters)}


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _without_nothing(value: dict[str, Any]) -> dict[str, Any]:
    """The object without keys whose value is None, inner ones included."""
    return {
        key: _without_nothing(inner) if isinstance(inner, dict) else inner
        for key, inner in value.items()
        if inner is not None
    }
