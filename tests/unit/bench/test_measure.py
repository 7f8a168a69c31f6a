from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from helix_jobs.bench import measure as module
from helix_jobs.bench.floor import matrix_product_floor
from helix_jobs.bench.machine import Machine, peak_device_memory
from helix_jobs.bench.measure import measure
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.engine.request import FinishReason, GenerationResult
from tests.unit.engine.tiny_models import request, tiny_engine, tiny_model

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 2, 7, 3], [4, 4, 8], [11, 3, 6, 2, 9, 10, 5, 12], [7, 8]]


@dataclass
class ScriptedEngine:
    """Plays steps back: each is how long it takes, what it emits and what the counters then say."""

    script: list[tuple[float, dict[str, int], EngineCounters]]
    clock: SimpleNamespace
    requests: list = field(default_factory=list)
    emitted: tuple = ()
    done: int = 0

    def add_request(self, added):
        self.requests.append(added)

    def has_unfinished(self):
        return self.done < len(self.script)

    def counters(self):
        return self.script[self.done - 1][2] if self.done else EngineCounters()

    def step(self):
        seconds, emissions, _ = self.script[self.done]
        self.clock.now += seconds
        self.done += 1
        self.emitted = tuple(
            SimpleNamespace(sequence=SimpleNamespace(request_id=name), token_ids=tuple(range(count)))
            for name, count in emissions.items()
        )
        return [] if self.has_unfinished() else [result(one.request_id) for one in self.requests]


def result(name, tokens=4):
    return GenerationResult(
        request_id=name,
        output_text="",
        output_token_ids=tuple(range(tokens)),
        finish_reason=FinishReason.LENGTH,
        error=None,
        prompt_tokens=10,
        cached_prompt_tokens=0,
        queue_seconds=1.0,
        ttft_seconds=2.0,
        decode_seconds=3.0,
        total_seconds=5.0,
        draft_tokens=6,
        accepted_tokens=3,
        target_steps=2,
    )


def counters(steps, sequence_steps, decodes, drafted=0, **more):
    return EngineCounters(
        steps=steps, sequence_steps=sequence_steps, decode_sequence_steps=decodes, draft_tokens=drafted, **more
    )


@pytest.fixture
def scripted(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def play(*script):
        engine = ScriptedEngine(list(script), clock)
        return measure(engine, [request("a", [1]), request("b", [2])], CPU).measurement

    return play


SCRIPT = (
    (2.0, {"a": 1, "b": 1}, counters(1, 2, 0)),
    (1.0, {"a": 2, "b": 1}, counters(2, 4, 2, 4)),
    (0.5, {"a": 1}, counters(3, 6, 4, 8)),
    (
        0.5,
        {"b": 2},
        counters(4, 7, 5, 9, target_seconds=3.0, draft_seconds=0.5, verify_seconds=0.2, schedule_seconds=0.1,
                 forced_tokens=5, accepted_forced_tokens=4),
    ),
)  # fmt: skip


def test_rates_are_over_the_wall_time(scripted):
    found = scripted(*SCRIPT)
    assert found.seconds == 4.0
    assert (found.output_tokens, found.output_tokens_per_second) == (8, 2.0)
    assert (found.prompt_tokens, found.prompt_tokens_per_second) == (20, 5.0)
    assert found.ttft_from_submission.p50 == 3.0
    assert found.ttft_from_admission.p99 == 2.0
    assert (found.acceptance_rate, found.mean_acceptance_length) == (0.5, 2.0)
    assert (found.forced_tokens, found.accepted_forced_tokens) == (5, 4)
    assert (found.steps, found.mean_batch_size, found.mean_depth) == (4, 7 / 4, 9 / 5)


def test_tokens_emitted_together_share_the_time_since_the_last(scripted):
    found = scripted(*SCRIPT)
    # a: 2 tokens after 1.0 s, 1 after 0.5 s; b: 1 after 1.0 s, 2 after 1.0 s
    gaps = sorted([0.5, 0.5, 0.5, 1.0, 0.5, 0.5])
    assert found.inter_token.p50 == (gaps[2] + gaps[3]) / 2
    assert found.inter_token.p99 == pytest.approx(0.5 + 0.5 * 0.95)


def test_the_decode_step_is_that_of_the_batch_size_that_took_most(scripted):
    step = scripted(*SCRIPT).decode_step
    assert (step.num_sequences, step.num_tokens, step.seconds, step.count) == (2, 6, 0.75, 2)
    assert scripted(SCRIPT[0]).decode_step is None, "prompts alone are no decode step"


def test_shares_are_of_the_wall_time_and_add_up(scripted):
    shares = scripted(*SCRIPT).shares
    assert (shares.target, shares.draft, shares.verify) == (0.75, 0.125, 0.05)
    assert shares.target + shares.draft + shares.verify + shares.schedule + shares.other == pytest.approx(1.0)
    assert scripted(SCRIPT[0]).shares is None, "an engine that does not count"


def run(draft="none", max_tokens=12, **config):
    engine = tiny_engine(tiny_model(), draft, depth=3, **config)
    requests = [request(str(i), ids, max_tokens=max_tokens, ignore_eos=True) for i, ids in enumerate(PROMPTS)]
    return measure(engine, requests, CPU)


def test_a_real_engine_is_counted_right():
    run_ = run()
    found = run_.measurement
    assert [len(output) for output in run_.outputs] == [12] * 4
    assert (found.requests, found.failed, found.output_tokens) == (4, 0, 48)
    assert found.prompt_tokens == sum(map(len, PROMPTS))
    assert (found.draft_tokens, found.acceptance_rate, found.mean_depth) == (0, None, 0.0)
    assert found.mean_acceptance_length == pytest.approx(1.0)
    assert found.decode_step.num_sequences == found.decode_step.num_tokens == 4
    assert found.shares.target > 0
    assert found.ttft_from_submission.p50 >= found.ttft_from_admission.p50
    assert found.peak_memory_bytes > 10_000_000
    assert found.peak_device_bytes is None


def test_drafts_show_in_the_figures_and_not_in_the_outputs():
    plain, drafted = run(), run("same")
    assert plain.outputs == drafted.outputs
    assert drafted.measurement.acceptance_rate > 0.9
    assert drafted.measurement.mean_acceptance_length > 2
    assert drafted.measurement.steps < plain.measurement.steps


def test_waiting_requests_count_their_queue():
    found = run(max_batch_size=1).measurement
    assert found.ttft_from_submission.p99 > found.ttft_from_admission.p99
    assert found.mean_batch_size == 1.0


def test_requests_that_fail_are_counted():
    engine = tiny_engine(tiny_model(), "none", num_blocks=4)
    requests = [
        request("long", list(range(2, 30)), max_tokens=4),
        request("short", [3, 4], max_tokens=4, ignore_eos=True),
    ]
    found = measure(engine, requests, CPU)
    assert found.measurement.failed == 1
    assert [len(output) for output in found.outputs] == [0, 4]
    assert found.measurement.output_tokens == 4


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("is_int8", [False, True])
def test_the_floor_runs_every_linear_layer_at_this_many_rows(num_tokens, is_int8, monkeypatch):
    decoder = build_decoder(tiny_model())
    decoder = quantize(decoder) if is_int8 else decoder
    decoder.pack()
    calls = []
    kind = type(decoder.head)
    real = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, rows: calls.append((self, rows.shape)) or real(self, rows))
    assert matrix_product_floor(decoder, num_tokens) > 0
    one_pass = [(layer, (num_tokens, layer.in_features)) for layer in decoder.linears()]
    assert [(layer, tuple(shape)) for layer, shape in calls[: len(one_pass)]] == one_pass
    assert len(calls) % len(one_pass) == 0


# In a process of its own: in a large one the system may take pages away while others are added.
HOLD = """
import torch
from helix_jobs.bench.machine import reset_peak_memory
from helix_jobs.bench.process_memory import peak_memory
reset_peak_memory(torch.device("cpu"))
before = peak_memory()
held = bytearray(64_000_000)
held[::4096] = b"x" * len(held[::4096])
print(peak_memory() - before)
"""


@pytest.mark.thorough
def test_peak_memory_rises_with_what_is_held():
    done = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000_000
    assert peak_device_memory(CPU) is None


def test_the_machine_is_described():
    machine = Machine.here()
    assert machine.cpu
    assert machine.logical_cores >= 1
    assert machine.torch == torch.__version__
    assert machine.transformers[0].isdecimal()
