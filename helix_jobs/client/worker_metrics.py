"""WorkerMetrics: what a worker's metrics tell that the database does not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Final

# One sample of Prometheus' text form: name, labels, value.
_SAMPLE: Final = re.compile(r"(?P<name>helix_\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_PATIENCE_SECONDS: Final = 1.0
_MOST_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class WorkerMetrics:
    """A worker's own figures; None where it does not know one.

    Attributes:
        slots_used: Batch slots in use.
        tokens_per_second: Of the run under way, 0 when idle.
        acceptance_rate: Part of the drafted tokens that were accepted since its start.
        memory: Bytes in use by its kind: of the process, and of the device beside the device's whole memory.
    """

    worker_id: str
    slots_used: int | None
    tokens_per_second: float | None
    acceptance_rate: float | None
    memory: dict[str, int]


def read_worker_metrics(host: str, port: int) -> WorkerMetrics | None:
    """Ask a worker for its metrics; None if nobody answers there in a second, or somebody else does."""
    connection = HTTPConnection(host, port, timeout=_PATIENCE_SECONDS)
    try:
        connection.request("GET", "/metrics")
        return parse_worker_metrics(connection.getresponse().read(_MOST_BYTES).decode("utf-8", "replace"))
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def parse_worker_metrics(text: str) -> WorkerMetrics | None:
    """A worker's figures in Prometheus' text form; None if there are none."""
    plain: dict[str, float] = {}
    memory: dict[str, int] = {}
    worker_id = None
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            continue
        name, value = sample["name"], _number(sample["value"])
        labels = dict(_LABEL.findall(sample["labels"] or ""))
        if name == "helix_worker_info":
            worker_id = labels.get("worker")
        elif name == "helix_worker_memory_bytes" and math.isfinite(value):
            memory[labels.get("kind", "")] = int(value)
        elif math.isfinite(value):
            plain[name] = value
    if worker_id is None:
        return None
    slots = plain.get("helix_worker_slots_used")
    return WorkerMetrics(
        worker_id=worker_id.replace(r"\"", '"').replace(r"\n", "\n").replace(r"\\", "\\"),
        slots_used=None if slots is None else int(slots),
        tokens_per_second=plain.get("helix_engine_tokens_per_second"),
        acceptance_rate=plain.get("helix_engine_acceptance_ratio"),
        memory=memory,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
