"""A client in a separate process, to measure its memory and time alone: ``submit``, ``export``, ``cancel``.

The bench runs it as ``python -m helix_jobs.bench.queue.client_process ACTION ARGUMENT [FILE]`` with the ``HELIX_*``
environment of the installation. It prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from helix_jobs.client.client import HelixClient
from helix_jobs.results.export import export_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.client.submission import SubmitProgress


def submit(client: HelixClient, path: str) -> dict[str, Any]:
    """Submit a file; reports the batch, the time, and the number of accepted lines over time."""
    began = time.perf_counter()
    seen: list[tuple[float, int]] = [(0.0, 0)]

    def note(progress: SubmitProgress) -> None:
        seen.append((time.perf_counter() - began, progress.accepted))

    batch = client.submit(path, on_progress=note, cache=False)
    return {"batch_id": batch.batch_id, "seconds": time.perf_counter() - began, "progress": seen}


def export(client: HelixClient, batch_id: str, path: str) -> dict[str, Any]:
    """Write the results of a batch as jsonl."""
    began = time.perf_counter()
    rows = export_results(client.results(batch_id), path, "jsonl")
    return {"rows": rows, "seconds": time.perf_counter() - began}


def cancel(client: HelixClient, batch_id: str) -> dict[str, Any]:
    """Cancel a batch."""
    began = time.perf_counter()
    jobs = client.cancel(batch_id)
    return {"jobs": jobs, "seconds": time.perf_counter() - began}


def main(arguments: list[str]) -> None:
    """Run one action and print its result."""
    actions: dict[str, Callable[..., dict[str, Any]]] = {"submit": submit, "export": export, "cancel": cancel}
    with HelixClient() as client:
        client.list(1)  # connect before the clock runs
        answer = actions[arguments[0]](client, *arguments[1:])
    print(json.dumps(answer))  # noqa: T201  (the answer is this program's output)


if __name__ == "__main__":
    main(sys.argv[1:])
