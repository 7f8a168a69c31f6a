from __future__ import annotations

import contextlib
import importlib.util
import sys
import types

import psutil
import pytest

from helix_jobs.bench.peer import PEERS, PEERS_FOLDER, PeerError, PeerJob, PeerProcess, peer_command
from helix_jobs.bench.process_memory import peak_memory
from helix_jobs.engine.request import EncodedRequest
from helix_jobs.engine.sampling_params import SamplingParams
from tests.worker_box import wait_until

JOB = PeerJob(
    model="m", gguf=None, draft=None, dtype="float32", batch_size=2, max_model_len=64, kv_cache_bytes=1, num_threads=3
)


def start():
    return PeerProcess("fake", peer_command("transformers", sys.executable), num_threads=3)


def asked(*prompts, max_tokens=8, ignore_eos=False):
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos)
    return [
        EncodedRequest(request_id=str(i), sampling_params=params, seed=0, prompt_token_ids=p)
        for i, p in enumerate(prompts)
    ]


def test_a_peer_loads_once_and_answers_round_after_round(fake_peer):
    with start() as peer:
        info = peer.load(JOB)
        assert (info.version, info.settings) == ("fake 1.0", {"threads": "3"})
        assert info.load_seconds >= 0
        for _ in range(3):
            run = peer.run(asked((5, 6), (7,)), stop_token_ids=[98])
            assert run.outputs == ((5, 6, 99), (7, 99))
            assert run.output_tokens == 5
            assert run.output_tokens_per_second == pytest.approx(5 / run.seconds)
            assert run.peak_memory_bytes > 1_000_000


@pytest.mark.parametrize(
    ("max_tokens", "ignore_eos", "output"),
    [(8, False, (5, 6)), (1, False, (5,)), (8, True, (5, 6, 99, 98)), (3, True, (5, 6, 99))],
)
def test_outputs_are_counted_as_helix_counts_them(max_tokens, ignore_eos, output, fake_peer):
    with start() as peer:
        peer.load(JOB)
        run = peer.run(asked((5, 6), max_tokens=max_tokens, ignore_eos=ignore_eos), stop_token_ids=[99])
        assert run.outputs == (output,)


def test_a_peer_that_dies_loading_leaves_its_last_words(fake_peer):
    fake_peer("load")
    with start() as peer, pytest.raises(PeerError, match="peer fake ended with exit code 7") as caught:
        peer.load(JOB)
    assert caught.value.tail.splitlines()[-2:] == ["a long story", "the reason"]


def test_a_peer_that_dies_in_a_round_stays_dead(fake_peer):
    fake_peer("round:1")
    with start() as peer:
        peer.load(JOB)
        peer.run(asked((5,)), [0])
        for _ in range(2):
            with pytest.raises(PeerError, match="exit code 7"):
                peer.run(asked((5,)), [0])


def test_an_exception_of_a_peer_comes_with_its_last_line():
    with PeerProcess("x", [sys.executable, str(PEERS_FOLDER / "run.py"), "no_such_peer"], 1) as peer:
        with pytest.raises(PeerError) as caught:
            peer.load(JOB)
        assert "No module named 'no_such_peer'" in caught.value.tail


def test_a_program_that_is_none_is_said_to_be():
    with pytest.raises(PeerError, match=r"/no/such/python cannot be run .*--peer-python"):
        PeerProcess("vllm", ["/no/such/python"], 1)


def test_a_peer_that_hangs_is_given_up(fake_peer, monkeypatch):
    monkeypatch.setattr("helix_jobs.bench.peer._EXIT_SECONDS", 0.2)
    fake_peer("hang")
    with start() as peer, pytest.raises(PeerError, match="has not answered for 0 s"):
        peer.load(JOB, timeout=0.3)


def test_no_token_at_all_is_no_answer(fake_peer):
    fake_peer("mute")
    with start() as peer:
        peer.load(JOB)
        with pytest.raises(PeerError, match="emitted no token"):
            peer.run(asked((5,)), [0])


def test_what_is_no_json_is_no_answer():
    script = "import sys\nfor line in sys.stdin: print('hello', flush=True)"
    with PeerProcess("x", [sys.executable, "-c", script], 1) as peer, pytest.raises(PeerError, match="not JSON"):
        peer.load(JOB)


def test_what_a_peer_started_ends_with_it(fake_peer, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PEER_PID", str(tmp_path / "pid"))
    fake_peer("child")
    with start() as peer:
        peer.load(JOB)
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        assert child.is_running()
        peer.close()
    wait_until(lambda: has_ended(child), "it outlives the peer")


def has_ended(process):
    """An orphan that was killed may stay a zombie until the system's first process takes note."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_hanging_peer_is_killed_on_close(fake_peer, monkeypatch):
    monkeypatch.setattr("helix_jobs.bench.peer._EXIT_SECONDS", 0.2)
    fake_peer("hang")
    peer = start()
    with contextlib.suppress(PeerError):
        peer.load(JOB, timeout=0.2)
    process = psutil.Process(peer._process.pid)
    peer.close()
    peer.close()
    assert not process.is_running()


def test_the_memory_of_what_a_peer_started_counts(fake_peer, tmp_path, monkeypatch):
    with start() as alone:
        alone.load(JOB)
        without = alone.run(asked((5,)), [0]).peak_memory_bytes
    monkeypatch.setenv("FAKE_PEER_PID", str(tmp_path / "pid"))
    fake_peer("child")
    with start() as peer:
        peer.load(JOB)
        child = peak_memory(psutil.Process(int((tmp_path / "pid").read_text())))
        assert peer.run(asked((5,)), [0]).peak_memory_bytes > without + child / 2


@pytest.mark.parametrize("module", sorted(path.name for path in PEERS_FOLDER.glob("*_peer.py")))
def test_peers_import_nothing_of_helix(module):
    assert module.removesuffix(".py") in PEERS.values()
    source = (PEERS_FOLDER / module).read_text(encoding="utf-8")
    assert "helix_jobs" not in source
    compile(source, module, "exec")


def test_openvino_is_not_timed_over_tokens_that_nobody_asked_for(monkeypatch):
    for name in ("openvino", "openvino_genai", "numpy"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    spec = importlib.util.spec_from_file_location("openvino_peer", PEERS_FOLDER / "openvino_peer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    peer = object.__new__(module.Peer)
    for max_tokens, ignore_eos in (([8, 9], [True, True]), ([8, 8], [True, False])):
        round_ = {"prompts": [[1], [2]], "max_tokens": max_tokens, "ignore_eos": ignore_eos, "stop_token_ids": [0]}
        with pytest.raises(ValueError, match="the same max_tokens"):
            peer.generate(round_)
