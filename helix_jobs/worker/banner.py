"""WorkerBanner: a starting worker's description of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.wording import rough_size

if TYPE_CHECKING:
    from helix_jobs.engine.protocol import EngineInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBanner:
    """The worker, its engine, and where it takes its jobs from; passwords are redacted."""

    worker_id: str
    engine: EngineInfo
    broker: str
    database: str
    metrics: str | None = None

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Label and value, one pair a line."""
        info = self.engine
        services = (
            ("broker", self.broker),
            ("database", self.database),
            *([("metrics", self.metrics)] if self.metrics is not None else []),
        )
        if info.is_remote:
            return (
                ("worker", self.worker_id),
                ("server", info.device),
                ("target", info.target_model),
                ("answers", "as the server makes them; whether they repeat is its affair"),
                ("chat", info.chat),
                ("slots", f"{info.max_batch_size} requests at once, up to {info.max_model_len} tokens each"),
                *services,
            )
        cache = f"{rough_size(info.kv_cache_bytes)} ({info.num_blocks} blocks of {info.block_size} tokens)"
        return (
            ("worker", self.worker_id),
            ("device", info.device),
            ("target", info.target_model),
            ("dtype", _dtype(info)),
            *([("adapters", ", ".join(info.adapters))] if info.adapters else []),
            ("draft", _draft(info)),
            ("depth", _depth(info)),
            ("kernels", info.kernels),
            ("answers", _answers(info)),
            ("chat", info.chat),
            ("slots", f"{info.max_batch_size}, up to {info.max_model_len} tokens each"),
            ("KV cache", cache if info.kv_cache_dtype == "auto" else f"{cache}; {_quantised_cache(info)}"),
            *services,
        )


def _dtype(info: EngineInfo) -> str:
    """Describe the number type. An int8 target changes answers, so the banner says what results say."""
    if info.overflows_float16:
        return f"{info.dtype} (the target does not fit float16's range; this takes twice the memory)"
    if info.dtype == "int8":
        return "int8 (the target itself is quantised; results say int8)"
    return info.dtype


def _quantised_cache(info: EngineInfo) -> str:
    return f"{info.kv_cache_dtype} with a scale for each token's head (results say {info.dtypes})"


def _answers(info: EngineInfo) -> str:
    if info.is_reproducible:
        return "the same in any company"
    return "may depend on what runs beside them, in near-ties"


def _draft(info: EngineInfo) -> str:
    """``lookup + int8 copy``; the banner shows the target's name already."""
    return (info.draft_model or "none").replace(f"{info.target_model} (int8)", "int8 copy")


def _depth(info: EngineInfo) -> str:
    if info.speculation_depth is None:
        return "auto (chosen each step by what pays)"
    return f"{info.speculation_depth} (fixed)" if info.speculation_depth else "0 (no speculation)"
