"""Jobs that kill, hang or break what runs them: they fail, each with its code, and all others succeed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

from helix_jobs.engine.fake_engine import fake_output
from tests.acceptance.faults.oracle import Accepted, line_of
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import ROOT, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.acceptance.faults.installation import Installation

DIED = 86
POISON = "arsenic"
MAKE_MODEL = ("-m", "tests.acceptance.faults.make_tiny_model")


def _mixed(count: int, bad: Mapping[int, str], words: int = 8) -> tuple[str, ...]:
    """Prompts that all differ, with bad ones at these places."""
    return tuple(" ".join((*bad.get(n, "").split(), *(f"p{n}-{word}" for word in range(words)))) for n in range(count))


def _spread(count: int, faults: int, word: str) -> dict[int, str]:
    """As many bad places, evenly apart, the first of them early."""
    return {2 + n * (count // faults): word for n in range(faults)}


def _submit(installation: Installation, prompts: Sequence[str], expected: Callable[[str, int], str] | None) -> Accepted:
    with installation.client() as client:
        lines = [line_of(prompt, number) for number, prompt in enumerate(prompts)]
        return Accepted(client.submit(lines).batch_id, prompts, expected, frozenset({"failed"}))


def _ends(installation: Installation, batch: Accepted, bad: Mapping[int, str]) -> tuple[str, ...]:
    """What does not end as it should: the bad ones failed with their codes, all others succeeded."""
    return tuple(
        f"line {row.line} ended as {row.state} ({row.error_code}), not as {bad.get(row.line - 1, 'succeeded')}"
        for row in installation.rows(batch.batch_id)
        if (row.error_code or row.state) != bad.get(row.line - 1, "succeeded")
    )


def _answer(prompt: str, choice: int) -> str:
    return fake_output(prompt, 256, choice=choice)[0]


def _supervise(installation: Installation, batch: Accepted, code: int, plan: Plan | None = None, **faults: str) -> int:
    """Start a worker as often as it ends, as a supervisor does, until every job has ended; how often it ended."""
    deaths = 0
    while True:
        worker = installation.start_doomed(plan or Plan(), **faults)
        wait_until(
            lambda w=worker: w.process.poll() is not None or not installation.unfinished(batch),
            lambda w=worker: f"neither ends nor finishes: {w.log}",
            installation.patience + len(batch.prompts) / 4,
        )
        if worker.process.poll() is None:
            return deaths
        assert worker.process.poll() == code, worker.log
        deaths += 1


@scenario(
    "poison: a job kills its worker", quick=Size(jobs=12, faults=1), quick_on=("sqlite",), full=Size(jobs=600, faults=4)
)
def kills(installation: Installation, size: Size) -> Outcome:
    """Three deaths each, with a batch of innocent neighbours in hand at the first two."""
    bad = _spread(size.jobs, size.faults, POISON)
    batch = _submit(installation, _mixed(size.jobs, bad), _answer)
    deaths = _supervise(installation, batch, DIED, fake_die=POISON, fake_step_seconds="0.02")
    attempts = Counter(row.attempts for row in installation.rows(batch.batch_id))
    note = f"{deaths} deaths; jobs by attempts: {', '.join(f'{n}: {attempts[n]}' for n in sorted(attempts))}"
    broken = _ends(installation, batch, dict.fromkeys(bad, "worker_lost"))
    return Outcome(accepted=[batch], faults=size.faults, note=note, broken=broken)


@scenario(
    "poison: a job hangs past its deadline",
    quick=Size(jobs=40, faults=4),
    quick_on=("postgres",),
    full=Size(jobs=600, faults=20),
)
def hangs(installation: Installation, size: Size) -> Outcome:
    """More of them than there are slots; the worker goes on."""
    bad = _spread(size.jobs, size.faults, "endless")
    batch = _submit(installation, _mixed(size.jobs, bad), _answer)
    deadline = 1 if installation.fork_server is not None else 5
    worker = installation.start(fake_hang="endless", fake_step_seconds="0.01", job_timeout=str(deadline))
    installation.wait_done(batch, timeout=installation.patience + size.faults * deadline)
    assert worker.process.poll() is None, worker.log
    broken = _ends(installation, batch, dict.fromkeys(bad, "deadline"))
    return Outcome(accepted=[batch], faults=size.faults, broken=broken, note=f"deadline {deadline} s")


@scenario("poison: a job stalls the device", full=Size(jobs=100, faults=1))
def stalls(installation: Installation, size: Size) -> Outcome:
    """The step does not return, which is beyond a deadline's reach: the worker ends itself, as often as it may."""
    bad = _spread(size.jobs, size.faults, "stuck")
    batch = _submit(installation, _mixed(size.jobs, bad), _answer)
    faults = {"fake_stall": "stuck", "fake_step_seconds": "0.02", "job_timeout": "1"}
    deaths = _supervise(installation, batch, 1, Plan(max_step_seconds=3.0), **faults)
    broken = _ends(installation, batch, dict.fromkeys(bad, "worker_lost"))
    return Outcome(accepted=[batch], faults=size.faults, broken=broken, note=f"{deaths} times, after 3 s each")


@scenario("poison: NaN in the logits, out of memory", full=Size(jobs=120, faults=12))
def breaks(installation: Installation, size: Size) -> Outcome:
    """The real engine with a tiny model, whose embedding of one letter is NaN, and prompts larger than the cache."""
    model = installation.temporary / "model"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *MAKE_MODEL, str(model)], env=environment, check=True, timeout=120)
    bad = _spread(size.jobs, size.faults, "z")
    prompts = [f"{letter} prompt" for letter in ("abcdefgh" * size.jobs)[: size.jobs]]
    codes = {}
    for number, place in enumerate(bad):
        codes[place] = "out_of_memory" if number % 2 else "engine_error"
        prompts[place] = "a" * 5_000 if number % 2 else "fuzz"
    # An answer ends before the poisonous letter, which others may come to write as well.
    batch = Accepted(
        installation.submit(*prompts, stop=["z"], stop_token_ids=[27]), prompts, None, frozenset({"failed"})
    )
    installation.settings = dataclasses.replace(installation.settings, engine="helix")
    worker = installation.start(
        target_model=str(model), draft_model="lookup", device="cpu", compile="off", kv_cache_mb="1", log_level="warning"
    )
    installation.wait_done(batch, timeout=120.0)
    assert worker.process.poll() is None, worker.log
    broken = _ends(installation, batch, codes)
    messages = {row.error_message.split(";")[0] for row in installation.rows(batch.batch_id) if row.error_message}
    broken += () if any("not finite" in message for message in messages) else (f"unclear: {messages}",)
    return Outcome(accepted=[batch], faults=size.faults, broken=broken, note="tiny model, real engine")
