"""The engine's answers at the tries of one job: reproducible, and each time another one, also where it is greedy."""

from __future__ import annotations

import pytest

from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.worker.acceptance import request_of_try
from tests.unit.engine.tiny_models import PROMPT, tiny_engine


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafts", ["none", "same"])
def test_each_try_is_another_answer_and_the_same_when_it_runs_again(temperature: float, drafts: str) -> None:
    engine = tiny_engine(draft=drafts)
    params = SamplingParams(max_tokens=16, temperature=temperature, ignore_eos=True)

    def answer(name: str, tries: int) -> tuple[int, ...]:
        request = Request(request_id=name, prompt_token_ids=tuple(PROMPT), sampling_params=params, seed=5)
        engine.add_request(engine.encode(request_of_try(request, tries)))
        (result,) = [result for _ in range(100) for result in (engine.step() if engine.has_unfinished() else [])]
        return result.output_token_ids

    first = [answer(f"a{tries}", tries) for tries in range(4)]
    assert first == [answer(f"b{tries}", tries) for tries in range(4)]
    assert len(set(first)) == 4
