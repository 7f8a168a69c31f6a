"""The real engine is killed in the middle of its answers."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from tests.acceptance.faults.oracle import Accepted
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

# Long enough for two deaths: the second time, all of the answers are looked up.
LENGTH = {"max_tokens": 256, "ignore_eos": True}
# Fewer than that is a failure, beside other work as well.
LEAST_TOKENS_PER_SECOND = 10


@scenario("demo model killed in mid-answer", full=Size(jobs=24, faults=2))
def demo_model(installation: Installation, size: Size) -> Outcome:
    """The answers are those of a worker nobody killed.

    What a dead worker ran comes first again, so a third death would bring it to its cap.
    """
    dice = random.Random(5)
    installation.use_demo_model()
    prompts = tuple(f"Write three sentences about the number {n}." for n in range(size.jobs // 2))
    worker = installation.start()
    undisturbed = installation.submit(*prompts, **LENGTH)
    patience = installation.patience + len(prompts) * LENGTH["max_tokens"] / LEAST_TOKENS_PER_SECOND
    installation.wait_done(Accepted(undisturbed, prompts), timeout=patience)
    with installation.client() as client:
        answers = dict(zip(prompts, (result.output_text or "" for result in client.results(undisturbed)), strict=True))
    batches = [Accepted(undisturbed, prompts, lambda prompt, _: answers[prompt])]
    batches.append(Accepted(installation.submit(*prompts, **LENGTH), prompts, lambda prompt, _: answers[prompt]))
    recoveries = []
    for _ in range(size.faults):
        wait_until(lambda worker=worker: installation.held_by(worker), lambda worker=worker: worker.log)
        time.sleep(dice.uniform(0.0, 1.0))
        worker.kill()
        held, died_at = installation.held_by(worker), time.monotonic()
        worker = installation.start()
        wait_until(lambda held=held: installation.taken_over(held), "nobody takes over", installation.patience)
        recoveries.append(time.monotonic() - died_at)
    installation.wait_done(*batches, timeout=patience)
    return Outcome(accepted=batches, faults=size.faults, recoveries=recoveries, note="recovery loads the model")
