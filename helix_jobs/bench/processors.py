"""Which processors a process, and whatever it starts from then on, may use."""

from __future__ import annotations

from typing import Final

import psutil

from helix_jobs.errors import HelixError

_LEAST: Final = 2


class ProcessorShare:
    """Divides this process's processors: the first one is a worker's, the others are everybody else's of the bench.

    Whoever has a device of its own beside the processors, as a worker on a GPU does, competes for none of them. A
    worker on processors is put into this position by a processor that nobody else uses.

    Raises:
        HelixError: There is one processor only, or the system does not let processes be bound to some.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        try:
            self._all = self._process.cpu_affinity()
        except (AttributeError, psutil.Error) as error:  # macOS has no such call
            raise HelixError("this system binds no process to a processor; measure without --apart") from error
        if len(self._all) < _LEAST:
            raise HelixError("there is one processor only; measure without --apart")

    def take_first(self) -> None:
        """Be on the first processor; what is started now stays there."""
        self._process.cpu_affinity(self._all[:1])

    def take_others(self) -> None:
        """Be on the others."""
        self._process.cpu_affinity(self._all[1:])

    def take_all(self) -> None:
        """Be on all of them again."""
        self._process.cpu_affinity(self._all)
