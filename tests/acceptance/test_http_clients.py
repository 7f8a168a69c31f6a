"""Clients that nobody here wrote, unchanged, against ``helix serve``. Each is installed in an environment of its own:

python -m pytest -m slow tests/acceptance/test_http_clients.py
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.integration.batch_files import as_file, line
from tests.integration.http_server import serving
from tests.worker_box import ROOT, make_box, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.redis]

PROGRAMS = ROOT / "tests" / "acceptance" / "clients"
CLIENT_SECONDS = 600
# LiteLLM's proxy starts without a key for nobody.
PROXY_KEY = f"sk-{secrets.token_hex(16)}"


@pytest.fixture
def address() -> Iterator[str]:
    """A server with a worker, SQLite and the embedded broker: what a newcomer has."""
    if sys.platform == "win32":
        pytest.skip("no embedded broker on Windows")
    directory = Path(tempfile.mkdtemp(prefix="hx-"))
    box = make_box(directory / "home", directory, redis_url=None, database_url=None)
    box.start_worker()
    with serving(box) as address:
        yield f"{address}/v1"
    box.close()
    shutil.rmtree(directory, ignore_errors=True)


def installed(folder: Path, *packages: str) -> Path:
    """The programs of a fresh environment with these packages."""
    venv.create(folder, with_pip=True)
    there = folder / "bin"
    subprocess.run([there / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return there


def clean_environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a client's program, without Helix on its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "PYTHON"))}
    return {**clean, "OPENAI_API_KEY": "unused", "HOME": str(folder), **more}


def said(folder: Path, *command: str | Path, **environment: str) -> str:
    """What a client's program prints, run in a folder of its own."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean_environment(folder, **environment),
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_inspect_ai_with_batch(tmp_path: Path, address: str) -> None:
    there = installed(tmp_path / "env", "inspect-ai", "openai")
    shutil.copy(PROGRAMS / "inspect_task.py", tmp_path)
    command = ("eval", "inspect_task.py", "--model", "openai/demo", "--model-base-url", address)
    text = said(tmp_path, there / "inspect", *command, "-M", "responses_api=false", "--batch", "--display", "plain")
    assert "Created batch batch_" in text
    assert "with 6 requests" in text
    assert "accuracy  1.000" in text


def test_autobatcher_with_a_window_of_a_day(tmp_path: Path, address: str) -> None:
    there = installed(tmp_path / "env", "autobatcher")
    text = said(tmp_path, there / "python", PROGRAMS / "autobatcher_asks.py", address)
    assert text.splitlines() == [f"number {number}" for number in range(20)]


def test_curator_in_a_batch_and_one_by_one(tmp_path: Path, address: str) -> None:
    there = installed(tmp_path / "env", "bespokelabs-curator")
    # It would fetch a table of prices, and report that it was used.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "TELEMETRY_ENABLED": "0", "CURATOR_DISABLE_RICH_DISPLAY": "1"}
    for way in ("batch", "online"):
        cache = {"CURATOR_CACHE_DIR": str(tmp_path / way)}
        text = said(tmp_path, there / "python", PROGRAMS / "curator_asks.py", address, way, **quiet, **cache)
        answers = [answer for answer in text.splitlines() if answer.startswith("number ")]
        assert sorted(answers) == [f"number {number}" for number in range(10)]


@contextmanager
def proxying(there: Path, folder: Path, address: str) -> Iterator[str]:
    """LiteLLM's proxy in front of the server: its address."""
    endpoint = {"api_base": address, "api_key": "unused"}
    config = {
        "model_list": [{"model_name": "demo", "litellm_params": {"model": "openai/demo", **endpoint}}],
        "files_settings": [{"custom_llm_provider": "openai", **endpoint}],
        "general_settings": {"master_key": PROXY_KEY},
    }
    (folder / "proxy.yaml").write_text(json.dumps(config))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (there / "litellm", "--config", "proxy.yaml", "--host", "127.0.0.1", "--port", str(port))
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with (folder / "proxy.log").open("wb") as log:
        proxy = subprocess.Popen(
            command, cwd=folder, env=clean_environment(folder, **quiet), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(
            lambda: proxy.poll() is not None or answers(port),
            lambda: (folder / "proxy.log").read_text()[-3000:],
            timeout=CLIENT_SECONDS,
        )
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        proxy.terminate()
        proxy.wait(60)


def answers(port: int) -> bool:
    """Whether the proxy answers."""
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health/liveliness").is_success
    except httpx2.TransportError:
        return False


def test_litellms_proxy_in_front(tmp_path: Path, address: str) -> None:
    there = installed(tmp_path / "env", "litellm[proxy]")
    with proxying(there, tmp_path, address) as proxy:
        text = said(tmp_path, there / "python", PROGRAMS / "litellm_proxy_asks.py", proxy, PROXY_KEY)
    chat, stream, completion, status, *lines = text.splitlines()
    assert [chat, stream, completion, status] == ["a chat", "a stream", "a completion", "completed"]
    assert lines == [f"line {number}" for number in range(3)]


def test_curl_from_a_file_to_its_answers(tmp_path: Path, address: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    (tmp_path / "requests.jsonl").write_bytes(as_file([line(number) for number in range(5)]))
    script = """
set -e
field() { sed "s/.*\\"$1\\": *\\"\\([^\\"]*\\)\\".*/\\1/"; }
FILE=$(curl -fsS $URL/files -F purpose=batch -F file=@requests.jsonl | field id)
BATCH=$(curl -fsS $URL/batches -H "Content-Type: application/json" -d "{
  \\"input_file_id\\": \\"$FILE\\", \\"endpoint\\": \\"/v1/chat/completions\\", \\"completion_window\\": \\"24h\\"
}" | sed 's/^{"id": *"\\([^"]*\\)".*/\\1/')
until curl -fsS $URL/batches/$BATCH | grep -q '"status": *"completed"'; do sleep 0.2; done
curl -fsS $URL/files/$(curl -fsS $URL/batches/$BATCH | field output_file_id)/content
"""
    text = said(tmp_path, "sh", "-c", script, URL=address)
    assert [f"word {number}" in answer for number, answer in enumerate(text.splitlines())] == [True] * 5
