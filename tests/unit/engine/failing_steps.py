"""Steps of an engine that fail when a test says so."""

from __future__ import annotations

from helix_jobs.engine.speculation.speculative import SpeculativeStep


class FaultyStep(SpeculativeStep):
    """Raises while a marked request takes part, or while more than ``limit`` sequences do."""

    def __init__(self, step, error, *, poison=None, limit=None):
        self.__dict__.update(step.__dict__)
        self.error, self.poison, self.limit, self.failures = error, poison, limit, 0

    def run(self, schedule):
        names = [p.sequence.request_id for p in (*schedule.decodes, *schedule.prefills)]
        if self.poison in names or (self.limit is not None and len(names) > self.limit):
            self.failures += 1
            raise self.error
        return super().run(schedule)


OUT_OF_MEMORY = RuntimeError("Could not allocate tensor with 99 bytes")


class FailingStep(SpeculativeStep):
    """Raises ``error`` where ``fails(schedule)`` says so; counts how often it did."""

    def __init__(self, step, fails, error=OUT_OF_MEMORY):
        self.__dict__.update(step.__dict__)
        self.fails, self.error, self.failures = fails, error, 0

    def run(self, schedule):
        if self.fails(schedule):
            self.failures += 1
            raise self.error
        return super().run(schedule)
