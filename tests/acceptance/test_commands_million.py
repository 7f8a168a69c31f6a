"""Every command that reads many jobs, on two batches of a million: what it says, its seconds and memory.

Run with -m slow -s.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from sqlalchemy import text

from helix_jobs.broker.publisher import EmbeddedBroker
from tests.store_helpers import register
from tests.varied_batches import answer_batch, varied_batch_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.storage.database import Database

pytestmark = pytest.mark.slow

LINES: Final = int(os.environ.get("HELIX_TEST_LINES", "1000000"))
FAILED: Final = LINES // 1000
CANCELLED: Final = sum(1 for line in range(7, LINES + 1, 1500) if line % 1000)
SUCCEEDED: Final = LINES - FAILED - CANCELLED
# Lines whose second answer is another one: line % 100 is 3, where the first has one.
CHANGED: Final = sum(1 for line in range(3, LINES + 1, 100) if line % 1000 and line % 1500 != 7)
CUT: Final = sum(1 for line in range(3, LINES + 1, 5000) if line % 1500 != 7)
MOST_BYTES: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    output: str
    seconds: float
    peak_bytes: int

    @property
    def figures(self) -> Any:
        return json.loads(self.output)


class Operator:
    """Somebody who types commands, and looks at the clock."""

    def __init__(self, folder: Path, database: Database, broker: EmbeddedBroker) -> None:
        self._folder = folder
        self._dialect = database.dialect
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "CELERY_"))}
        places = {
            "HELIX_HOME": str(folder),
            "HELIX_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "HELIX_REDIS_URL": broker.url,
        }
        self._environment = {**kept, **places, "HELIX_ENGINE": "fake", "HELIX_TARGET_MODEL": "target"}

    def helix(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> Done:
        began = time.perf_counter()
        with (self._folder / "stdout").open("w+b") as output, (self._folder / "stderr").open("w+b") as words:
            process = subprocess.Popen(
                [sys.executable, "-m", "helix_jobs", *arguments],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=words,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - began
            output.seek(0)
            words.seek(0)
            assert process.returncode in codes, f"{arguments}: {words.read().decode()}"
            done = Done(output=output.read().decode(), seconds=seconds, peak_bytes=usage.ru_maxrss * 1024)
        name = " ".join(Path(word).name for word in arguments if not word.startswith("b-"))
        print(f"| {self._dialect} | `{name}` | {done.seconds:.1f} s | {done.peak_bytes / 1e6:.0f} MB |", flush=True)  # noqa: T201  (the figures are the reader's)
        assert done.peak_bytes < MOST_BYTES
        return done


@pytest.fixture
def operator(database: Database) -> Iterator[Operator]:
    folder = Path(tempfile.mkdtemp(prefix="hx-"))  # short: it holds a socket
    broker = EmbeddedBroker(folder)
    broker.start()
    yield Operator(folder, database, broker)
    broker.stop()
    shutil.rmtree(folder, ignore_errors=True)


def write_table(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "question"))
        writer.writerows((f"c{line}", f"Question {line}") for line in range(1, LINES + 1))


def line_count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def test_commands_over_a_million_jobs(database: Database, operator: Operator, tmp_path: Path) -> None:
    register(database, "w1")
    first, second = (varied_batch_of(database, LINES) for _ in range(2))
    with database.write(unlimited=True) as c:
        c.execute(
            text(
                "UPDATE results SET output_text = 'Another answer' WHERE job_id IN "
                "(SELECT id FROM jobs WHERE batch_id = :b AND line % 100 = 3)"
            ),
            {"b": second},
        )
    table = tmp_path / "table.csv"
    write_table(table)
    print("\n| Database | Command | Time | Peak memory |\n|---|---|---|---|")  # noqa: T201  (see above)

    counts = operator.helix("status", first, "--json").figures["counts"]
    assert (counts["succeeded"], counts["failed"], counts["cancelled"]) == (SUCCEEDED, FAILED, CANCELLED)
    operator.helix("status", "--json")
    listed = operator.helix("list", "--json").figures
    assert {batch["id"] for batch in listed} == {first, second}
    assert len(operator.helix("status", first, "--jobs", "--json").figures["jobs"]) == FAILED + CANCELLED
    operator.helix("manifest", first, "--json")

    operator.helix("report", first, "-o", str(tmp_path / "report.html"))
    assert "Tokens written" in (tmp_path / "report.html").read_text(encoding="utf-8")
    operator.helix("results", first, "-o", str(tmp_path / "answers.jsonl"))
    assert line_count(tmp_path / "answers.jsonl") == SUCCEEDED
    operator.helix("results", first, "-o", str(tmp_path / "answers.parquet"))

    found = operator.helix("diff", first, second, "--json", codes=(0, 1)).figures["summary"]["changes"]
    assert (found["changed"], found["same"]) == (CHANGED, SUCCEEDED - CHANGED)
    operator.helix("diff", first, second, "--html", str(tmp_path / "diff.html"), codes=(0, 1))

    asked = (str(table), "--prompt", "{{ question }}", "--id", "name", "--json")
    plan = operator.helix("plan", *asked).figures
    assert plan["lines"] == LINES
    third = operator.helix("submit", *asked).figures["batch_id"]
    again = operator.helix("retry", second, "--where", "finish_reason = 'length'", "--json").figures
    assert again["queued"] == CUT
    operator.helix("pause", third, "--json")
    operator.helix("resume", third, "--json")
    operator.helix("cancel", third, "--json")
    assert operator.helix("status", third, "--json").figures["counts"]["cancelled"] == LINES
    operator.helix("retry", third, "--json")
    answer_batch(database, third)
    operator.helix("results", third, "--join", str(table), "-o", str(tmp_path / "joined.csv"))
    assert line_count(tmp_path / "joined.csv") == LINES + 1
    operator.helix("db", "check", "--json")
    operator.helix("purge", third, "--yes", "--json")
    assert third not in operator.helix("list", "--json").output
