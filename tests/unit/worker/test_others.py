"""Whether somebody else uses the machine: signs that last, and their end that lasts longer."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.settings import Settings
from helix_jobs.worker import machine_use
from helix_jobs.worker.machine_use import MachineUse
from helix_jobs.worker.others import COME_SECONDS, GONE_SECONDS, LOOK_SECONDS, Others, Presence, judge
from helix_jobs.yield_when import YieldWhen

if TYPE_CHECKING:
    from collections.abc import Sequence


class Machine:
    """A machine whose others do what a test says, on a clock that it moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.share: float | None = 0.0
        self.held: float | None = 0.0
        self.names: frozenset[str] = frozenset({"init"})
        self.looks = 0

    def load(self) -> float | None:
        self.looks += 1
        return self.share

    def memory(self) -> float | None:
        return self.held

    def processes(self) -> frozenset[str]:
        return self.names

    def signs(self, others: Others, seconds: int) -> Sequence[str | None]:
        """What is said in each of so many seconds."""
        found = []
        for _ in range(seconds):
            self.now += 1
            found.append(others.sign())
        return found


def others_of(machine: Machine, text: str) -> Others:
    return Others(YieldWhen.parse(text), machine, lambda: machine.now)


def test_a_sign_must_last_before_it_counts_and_be_gone_for_longer() -> None:
    machine = Machine()
    others = others_of(machine, "load>50%")
    assert set(machine.signs(others, 100)) == {None}
    machine.share = 0.51
    came = machine.signs(others, 40)
    assert came.count(None) >= COME_SECONDS
    assert came[-1] == "others use more than 50 % of the processors"
    machine.share = 0.1
    gone = machine.signs(others, 100)
    assert GONE_SECONDS <= len([sign for sign in gone if sign is not None]) <= GONE_SECONDS + 2 * LOOK_SECONDS
    assert gone[-1] is None
    assert machine.looks <= 240 / LOOK_SECONDS + 1, "it is asked every second, and looks less often"


def test_a_short_peak_and_a_short_pause_change_nothing() -> None:
    machine = Machine()
    others = others_of(machine, "load>50%")
    for _ in range(5):
        machine.share = 0.9
        assert set(machine.signs(others, int(COME_SECONDS) - 1)) == {None}
        machine.share = 0.1
        assert set(machine.signs(others, int(LOOK_SECONDS))) == {None}
    machine.share = 0.9
    machine.signs(others, 30)
    for _ in range(3):
        machine.share = 0.1
        assert None not in machine.signs(others, int(GONE_SECONDS) - 10)
        machine.share = 0.9
        assert None not in machine.signs(others, int(LOOK_SECONDS))


def test_each_sign_is_enough() -> None:
    machine = Machine()
    others = others_of(machine, "load>50%, memory>20%, process:Blender")
    machine.held, machine.share = 0.21, None
    assert machine.signs(others, 30)[-1] == "others hold more than 20 % of the device's memory"
    machine.held, machine.names = None, frozenset({"init", "blender"})
    assert None not in machine.signs(others, 100), "another sign has come instead"
    machine.names = frozenset({"blender-thumbnailer"})
    assert machine.signs(others, 100)[-1] is None
    machine.names = frozenset({"blender"})
    assert machine.signs(others, 30)[-1] == "Blender runs"


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.booleans()), max_size=40))
def test_a_change_follows_only_what_was_seen_all_the_time_before(looks: list[tuple[float, bool]]) -> None:
    now, known, since = 0.0, Presence(), 0.0
    seen_before = False
    for pause, is_there in looks:
        now += pause
        if is_there != seen_before:
            since, seen_before = now, is_there
        before, known = known, judge(known, "sign" if is_there else None, now)
        if (known.sign is None) != (before.sign is None):
            assert (known.sign is not None) == is_there
            assert now - since >= (COME_SECONDS if is_there else GONE_SECONDS)


def test_what_the_worker_and_its_children_use_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times:
        """Of four processors: 40 seconds in ten."""

        def __init__(self, user: float, idle: float) -> None:
            self.values = (user, 0.0, 0.0, idle, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0)
            self.user, self.idle, self.iowait, self.guest, self.guest_nice = user, idle, 0.0, 3.0, 0.0

        def __iter__(self) -> Any:
            return iter(self.values)

    machine = [Times(103.0, 100.0), Times(133.0, 110.0), Times(133.0, 110.0)]
    own = [5.0, 15.0, 15.0]
    use = MachineUse(Settings.from_environment({"HELIX_ENGINE": "fake"}))
    monkeypatch.setattr(psutil, "cpu_times", lambda: machine.pop(0))
    monkeypatch.setattr(use, "_own_seconds", lambda: own.pop(0))
    assert use.load() is None
    assert use.load() == pytest.approx((30.0 - 10.0) / 40.0)
    assert use.load() is None, "no time has passed"
    assert use.memory() is None


def test_processes_are_known_by_their_names() -> None:
    use = MachineUse(Settings.from_environment({"HELIX_ENGINE": "fake"}))
    assert any(name.startswith("python") or "pytest" in name for name in use.processes())
    before = use._own_seconds()
    child = subprocess.Popen([sys.executable, "-c", "sum(range(10**7)); input()"], stdin=subprocess.PIPE)
    try:
        assert child.stdin is not None
        child.communicate(b"\n", timeout=60)
    finally:
        child.kill()
    assert use._own_seconds() > before, "a child that has ended counts"


def test_a_process_that_may_not_be_asked_for_its_name_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nameless:
        info = {"name": None}  # noqa: RUF012  (as psutil has it)

    class Game:
        info = {"name": "Game.EXE"}  # noqa: RUF012

    monkeypatch.setattr(machine_use.psutil, "process_iter", lambda _: [Nameless(), Game()])
    names = MachineUse(Settings.from_environment({"HELIX_ENGINE": "fake"})).processes()
    assert {"game", "game.exe"} <= names
