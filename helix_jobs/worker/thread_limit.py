"""Whether this process may have the threads it will need, asked before it takes a job."""

from __future__ import annotations

import threading
from typing import Final

from helix_jobs.errors import ConfigurationError

# Besides the slots' threads: writer, heartbeat, reconciler, watchdog, the broker's client and so on.
OWN_THREADS: Final = 16
# One thread runs a slot's job, another encodes its prompt.
THREADS_PER_SLOT: Final = 2
# Slots beyond this number are not tried, as thousands would take long.
MOST_TRIED: Final = 128


def check_threads(slots: int, spare: int = 0) -> None:
    """Start the threads that a worker with so many slots needs, and let them end again.

    Args:
        slots: Batch slots.
        spare: Jobs beside those of the slots that it may have in hand.

    Raises:
        ConfigurationError: The system does not allow so many threads, or has no memory for their stacks.
    """
    wanted = OWN_THREADS + THREADS_PER_SLOT * min(slots + spare, MOST_TRIED)
    release = threading.Event()
    threads = []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=release.wait, name="helix-trial", daemon=True)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        raise ConfigurationError(
            f"this process may start {len(threads)} more threads, and a worker needs {wanted}: raise the limit of "
            "processes (ulimit -u, TasksMax, a container's pids limit) or of memory (ulimit -v), or lower "
            "--max-batch-size"
        ) from None
    finally:
        release.set()
        for thread in threads:
            thread.join()
