"""Run one peer: ``python run.py NAME``, JSON lines on standard input and output.

The first input line is the job (see ``helix_jobs.bench.peer.PeerJob``); its answer describes the loaded peer. Each
further line is a round (prompts, limits, end tokens); its answer holds its seconds and the emitted token ids. The end
of the input ends the program. Between rounds the program sleeps in a read.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Load the peer named on the command line and serve rounds until the input ends."""
    # Libraries may print on standard output, so answers go to a copy of it that only this program writes to.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:  # noqa: ANN401  (JSON)
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    module = importlib.import_module(sys.argv[1])
    start = time.perf_counter()
    peer = module.load(json.loads(sys.stdin.readline()))
    answer(version=module.version(), settings=peer.settings, load_seconds=time.perf_counter() - start)
    for line in sys.stdin:
        round_ = json.loads(line)
        peer.prepare()
        start = time.perf_counter()
        outputs = peer.generate(round_)
        seconds = time.perf_counter() - start
        stop = set(round_["stop_token_ids"])
        limits = zip(outputs, round_["max_tokens"], round_["ignore_eos"], strict=True)
        answer(seconds=seconds, outputs=[_cut(ids, limit, set() if ignore else stop) for ids, limit, ignore in limits])


def _cut(ids: list[int], limit: int, stop: set[int]) -> list[int]:
    """The output as Helix counts it: without the end token and the padding that a batch appends."""
    end = next((i for i, token in enumerate(ids) if token in stop), len(ids))
    return [int(token) for token in ids[: min(end, limit)]]


if __name__ == "__main__":
    main()
