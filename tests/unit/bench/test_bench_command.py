"""``helix bench`` from the command line to its files, on a tiny random model."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from helix_jobs.bench import session
from helix_jobs.cli.bench.options import peer_interpreters
from helix_jobs.cli.group import cli
from helix_jobs.errors import EngineBrokenError
from tests.unit.bench.bench_report import read, validate
from tests.unit.engine.model_files import save_checkpoint
from tests.unit.engine.tiny_models import tiny_model

pytestmark = pytest.mark.usefixtures("_tokenizers_tried_once")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", tiny_model())


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HELIX_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(session, "_SETTLE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bench(model):
    def run(*arguments, target=model, code=0):
        words = [str(word) for word in ("bench", *arguments, "--target", target, "--device", "cpu")]
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": text, "max_tokens": 9, "temperature": 0.7} for text in ("a cat sat", "on the mat.", "why, dog?")
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


SHORT = ("--prompt-tokens", 12, "--max-tokens", 8, "--repeat", 2)


@pytest.mark.thorough
def test_modes_and_batch_sizes_are_measured_beside_each_other(bench, tmp_path):
    # What the files' names stood for stays whole until the new ones are, and so do other links to it.
    for name in ("out.json", "out.svg"):
        (tmp_path / name).write_text("earlier", encoding="utf-8")
        (tmp_path / f"kept-{name}").hardlink_to(tmp_path / name)
    result = bench(
        *("decode", *SHORT, "--draft", "int8,lookup", "--speculation", "off,2,auto", "--batch-sizes", "1,3"),
        *("--json", tmp_path / "out.json", "--chart", tmp_path / "out.svg"),
    )
    report = read(tmp_path / "out.json")
    modes = ["off", "int8 K=2", "lookup K=2", "int8 auto", "lookup auto"]
    assert [(case["mode"], case["batch_size"]) for case in report["cases"]] == [(m, b) for b in (1, 3) for m in modes]
    assert all(len(case["rounds"]) == len(case["floor_seconds"]) == 2 for case in report["cases"])
    assert {r["output_tokens"] for c in report["cases"] for r in c["rounds"]} == {8, 24}
    assert report["complete"]
    assert report["drafts"] == ["int8", "lookup"]
    speed_ups = report["against_off"]
    assert [(one["mode"], one["batch_size"]) for one in speed_ups] == [(m, b) for b in (1, 3) for m in modes[1:]]
    assert {one["equal_outputs"] for one in speed_ups} == {1.0}, "drafts change no greedy output"
    assert all(len(one["ratios"]) == 2 for one in speed_ups)
    for label in (*modes, "VS OFF", "FLOOR", "1 thread", "medians of 2 rounds"):
        assert label in result.stdout
    assert "round 2 of 2: lookup auto ..." in result.stderr
    names = ["".join(text.itertext()) for text in ET.parse(tmp_path / "out.svg").iter()]  # noqa: S314  (our own file)
    assert {"speculation off", "int8 K=2", "lookup adaptive"} <= set(names)
    assert {file.read_text(encoding="utf-8") for file in tmp_path.glob("kept-*")} == {"earlier"}


def test_rounds_alternate_and_every_round_starts_afresh(bench, tmp_path):
    result = bench(
        "shared-prefix",
        *SHORT,
        "--sample",
        6,
        "--speculation",
        "off",
        "--batch-sizes",
        2,
        "--json",
        tmp_path / "o.json",
    )
    shared, distinct = read(tmp_path / "o.json")["cases"]
    assert (shared["variant"], distinct["variant"]) == ("shared", "distinct")
    cached = [round_["cached_prompt_tokens"] for round_ in shared["rounds"]]
    assert cached[0] == cached[1], "nothing is left in the cache by the round before"
    assert cached[0] < sum(round_["prompt_tokens"] for round_ in shared["rounds"]) / 2
    assert "off (shared)" in result.stdout
    assert "off (distinct)" in result.stdout


def test_a_file_keeps_its_sampling_without_peers(bench, prompts, tmp_path):
    bench("bulk", "--prompts", prompts, "--speculation", "off", "--repeat", 1, "--json", tmp_path / "o.json")
    report = read(tmp_path / "o.json")
    assert (
        report["workload"] | {"forced_greedy": False, "prompts": "prompts.jsonl", "sample": None} == report["workload"]
    )
    assert report["cases"][0]["rounds"][0]["requests"] == 3


def test_bulk_is_meant_when_no_workload_is_named(bench, prompts):
    result = bench("--prompts", prompts, "--speculation", "off", "--repeat", 1, "--max-tokens", 3)
    assert result.stdout.startswith("bulk: ")


def test_json_on_standard_output_is_nothing_but_that(bench):
    result = bench("decode", *SHORT, "--speculation", "off", "--batch-sizes", "2", "--json")
    validate(json.loads(result.stdout))


@pytest.mark.thorough
def test_transformers_gives_the_same_tokens_and_takes_turns(bench, prompts, tmp_path):
    result = bench(
        *("bulk", "--prompts", prompts, "--speculation", "off", "--repeat", 2, "--against", "transformers"),
        *("--dtype", "float32", "--batch-sizes", 2, "--json", tmp_path / "o.json"),
    )
    report = read(tmp_path / "o.json")
    (peer,), (comparison,) = report["peers"], report["against_peers"]
    assert peer["version"].startswith("transformers ")
    assert peer["error"] is None
    assert comparison["equal_outputs"] == 1.0
    ours, theirs = report["cases"][0]["rounds"], peer["rounds"]
    assert comparison["ratios"] == [
        a["output_tokens_per_second"] / b["output_tokens_per_second"] for a, b in zip(ours, theirs, strict=True)
    ]
    assert [a["output_tokens"] for a in ours] == [b["output_tokens"] for b in theirs]
    turns = [line.partition(": ")[2] for line in result.stderr.splitlines() if "round" in line]
    assert turns == ["off ...", "transformers ..."] * 2
    assert report["workload"]["forced_greedy"]


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(("what", "rounds"), [("load", 0), ("round:0", 0), ("round:2", 1)])
def test_a_peer_that_dies_is_reported_and_the_bench_goes_on(what, rounds, bench, fake_peer, tmp_path):
    fake_peer(what)
    result = bench(
        *("decode", *SHORT, "--speculation", "off", "--batch-sizes", "2", "--against", "transformers"),
        *("--json", tmp_path / "o.json"),
    )
    report = read(tmp_path / "o.json")
    (peer,) = report["peers"]
    assert peer["error"] == "peer transformers ended with exit code 7"
    assert peer["error_tail"].endswith("the reason")
    assert len(peer["rounds"]) == rounds
    assert [len(one["ratios"]) for one in report["against_peers"]] == [rounds] * bool(rounds)
    assert len(report["cases"][0]["rounds"]) == 2
    assert report["complete"]
    assert "the reason" in result.stdout


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ("assisted", "needs a draft model of its own"),
        ("openvino", "reads a GGUF file, and there is none in"),
        ("llama", "reads a GGUF file, and there is none in"),
    ],
)
def test_a_peer_without_a_model_it_reads_says_so(peer, said, bench, tmp_path):
    bench(
        "decode", *SHORT, "--speculation", "off", "--batch-sizes", "1", "--against", peer, "--json", tmp_path / "o.json"
    )
    assert said in read(tmp_path / "o.json")["peers"][0]["error"]


def test_an_interruption_keeps_what_was_measured(bench, tmp_path, monkeypatch):
    calls = []

    def floor(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 0.001

    monkeypatch.setattr(session, "matrix_product_floor", floor)
    result = bench(
        "decode", *SHORT, "--speculation", "off", "--batch-sizes", "1,2", "--json", tmp_path / "o.json", code=130
    )
    report = read(tmp_path / "o.json")
    assert not report["complete"]
    assert len(report["cases"][0]["rounds"]) == 2
    assert "Interrupted." in result.stderr


def test_an_error_keeps_what_was_measured_before_it(bench, tmp_path, monkeypatch):
    real, calls = session.measure, []

    def measure(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise EngineBrokenError("the device is at fault")
        return real(*arguments)

    monkeypatch.setattr(session, "measure", measure)
    result = bench(
        "decode", *SHORT, "--speculation", "off", "--batch-sizes", "1,2", "--json", tmp_path / "o.json", code=1
    )
    report = read(tmp_path / "o.json")
    assert "the device is at fault" in result.stderr
    assert not report["complete"]
    assert [len(case["rounds"]) for case in report["cases"]] == [2, 0]
    assert "DECODE STEP" in result.stdout


@pytest.mark.thorough
def test_a_limit_beyond_the_context_is_the_contexts(bench, tmp_path):
    bench(
        "decode", *SHORT, "--speculation", "off", "--batch-sizes", 1, "--max-tokens", 300, "--json", tmp_path / "o.json"
    )
    assert read(tmp_path / "o.json")["cases"][0]["rounds"][0]["output_tokens"] == 256 - 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speculation", "fast"], "--speculation': 'fast' is no speculation mode; give off, auto or a depth"),
        (["--speculation", "off,,4"], "'' is no speculation mode"),
        (["--batch-sizes", "1,zero"], "--batch-sizes': 'zero' is no batch size; give numbers from 1 to 4096"),
        (["--against", "sglang"], "--against': 'sglang' is no peer; give one or more of transformers, assisted, vllm"),
        (["--against", "vllm", "--peer-python", "vllm=/no/python"], "'/no/python' is no program"),
        (["--peer-python", "vllm=python"], "'vllm' is not among the peers of this call; add it to --against"),
        (["--peer-python", "x=python"], "the peers are transformers, assisted"),
        (["--draft", "none", "--speculation", "4"], "speculation needs a draft; give --draft int8"),
        (["--chart", "c.pdf"], "--chart: c.pdf is no .svg file"),
        (["--chart", "no/c.svg"], "--chart: the directory of 'no/c.svg' does not exist"),
        (["--json", "no/o.json"], "--json: the directory of 'no/o.json' does not exist"),
        (["--json", "decode"], "--json: 'decode' is a workload; name it before the options"),
        (["--prompts", "none.jsonl"], "--prompts': File 'none.jsonl' does not exist"),
        (["--sample", "500"], "--sample 500 is more than the 192 prompts"),
    ],
)
def test_wrong_usage_is_named_before_anything_is_measured(arguments, said, bench):
    result = bench("bulk", *arguments, code=2)
    assert said in " ".join(result.stderr.split())
    assert "warming up" not in result.stderr


def test_prompts_that_do_not_fit_are_named_with_the_remedy(bench):
    result = bench("long", "--prompt-tokens", 400, "--sample", 1, "--speculation", "off", code=2)
    assert "context holds 256" in result.stderr
    assert "--prompt-tokens" in result.stderr


def test_an_error_for_a_program_is_json(bench):
    result = bench("decode", "--json", target="/no/such/model", code=2)
    assert "/no/such/model" in json.loads(result.stdout)["error"]["message"]


def test_interpreters_are_named_or_shared():
    python = sys.executable
    assert peer_interpreters(("vllm", "openvino"), ()) == (("vllm", python), ("openvino", python))
    pairs = peer_interpreters(("vllm", "openvino"), ("/bin/sh", f"vllm={python}"))
    assert pairs == (("vllm", python), ("openvino", "/bin/sh"))
