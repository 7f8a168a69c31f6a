from __future__ import annotations

import pytest

from helix_jobs.bench.peer import PEERS
from tests.unit.engine.tried_tokenizers import _tokenizers_tried_once
from tests.unit.one_thread import _one_thread

__all__ = ["_one_thread", "_tokenizers_tried_once"]


FAKE_PEER = """
import os, subprocess, sys, time

def version():
    return "fake 1.0"

class Peer:
    settings = {"threads": os.environ["OMP_NUM_THREADS"]}

    def __init__(self, job):
        self.job, self.rounds = job, 0

    def prepare(self):
        pass

    def generate(self, round_):
        behave("round", self.rounds)
        self.rounds += 1
        print("this is no answer", flush=True)
        if WHAT == "mute":
            return [[] for _ in round_["prompts"]]
        # the limit is overrun, as a padded batch does
        return [[*prompt, 99, 98] for prompt in round_["prompts"]]

def load(job):
    behave("load", 0)
    print("neither is this", flush=True)
    return Peer(job)

WHAT, _, ROUND = os.environ.get("FAKE_PEER", "").partition(":")

def behave(when, number):
    if WHAT == when and number == int(ROUND or 0):
        print("a long story", "the reason", sep="\\n", file=sys.stderr, flush=True)
        sys.exit(7)
    if WHAT == "hang":
        time.sleep(60)
    if WHAT == "child" and when == "load":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(os.environ["FAKE_PEER_PID"], "w").write(str(child.pid))
"""


@pytest.fixture
def fake_peer(tmp_path, monkeypatch):
    """``fake_peer("round:1")`` makes the peer ``transformers`` a small script that dies in its second round."""
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "fake_peer.py").write_text(FAKE_PEER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setitem(PEERS, "transformers", "fake_peer")

    def behave(what=""):
        monkeypatch.setenv("FAKE_PEER", what)

    behave()
    return behave
