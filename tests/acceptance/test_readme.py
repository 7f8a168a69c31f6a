"""README and docs hold what Helix has, and what they say runs: commands, queries, Python, examples."""

from __future__ import annotations

import io
import re
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psycopg
import pytest

from helix_jobs import errors
from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.cli.group import EXIT_CODES
from helix_jobs.engine.kernels.cpu import build
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.errors import ErrorCode
from helix_jobs.intake.lines import LineReader
from helix_jobs.new_job import NewJob
from helix_jobs.results.export import COLUMNS
from helix_jobs.storage.schema import metadata
from helix_jobs.storage.states import BatchState, JobState
from helix_jobs.worker.metrics import METRICS
from tests.acceptance.commands import COMMANDS
from tests.acceptance.readme_text import BLOCKS, PAGES, TEXT, Block, code_words, names_option
from tests.acceptance.scene import Scene, is_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

# Run by .ci/run, because they make an environment or run these tests.
INSTALLATION = ("python -m pip install ", "python -m pytest")
# Every block that nobody runs here, with the reason its page gives. A new one must be entered by hand.
NOT_RUN = {
    ("README", "Quick start", "makes an environment; .ci/run does the same"),
    ("index", "Quick start", "makes an environment; .ci/run does the same"),
    ("cli", "bench", "needs peers in environments of their own"),
    ("cli", "bench", "takes a minute"),
    ("cli", "bench", "takes minutes"),
    ("cli", "bench", "needs a folder of schemas"),
    ("models", "Devices", "needs Windows or WSL with a DirectX 12 device"),
    ("deployment", "Redis, Postgres, Docker", "needs Docker"),
    ("supervision", "systemd", "makes a user and a service"),
    ("supervision", "The HTTP server", "makes a service"),
    ("supervision", "Docker Compose", "needs Docker"),
    ("monitoring", "Metrics", "listens on a port that others may use"),
    ("notifications", "A webhook", "asks a server"),
    ("notifications", "A webhook", "part of a server"),
    ("notifications", "A program", "sets what a worker reads"),
    ("notifications", "Mail and chat", "installs apprise, and sends mail"),
    ("monitoring", "Flower", "Flower is no part of Helix"),
    ("security", "Known vulnerabilities", "asks a service on the internet"),
    ("development", "Checks", ".ci/run does the same"),
    ("development", "Faults", "takes an hour"),
    ("development", "Tests", ".ci/run does the same"),
    ("development", "Tests", "downloads some hundred megabytes"),
    ("development", "The device check", "needs a GPU"),
    ("development", "DirectML without its hardware", "downloads an older torch"),
    ("durability", "Proven under fire", "takes an hour"),
    ("durability", "Proven under fire", "takes ten minutes"),
    ("http", "HTTP", "it serves until it is stopped"),
    ("http", "Keys", "it serves until it is stopped"),
    ("http", "Requests", "needs a server"),
    ("http", "Batches", "needs a server"),
    ("page", "The page", "it serves until it is stopped"),
    ("night", "A night", "takes an hour"),
    ("night", "In the evening", "needs that table"),
    ("night", "In the night", "needs that batch"),
    ("night", "In the morning", "needs that batch"),
    ("night", "The next evening", "needs two batches"),
    ("endpoint", "Start", "needs a server"),
    ("python", "Data frames", "needs a data frame"),
}
SERVICES = "deployment"
BENCH = ("cli", "bench")
# Options of other programs, or of the tests, that the pages name.
FOREIGN_OPTIONS = {
    *("--address", "--port", "--check", "--disable-pip", "--no-deps", "--faults-table", "--soak-minutes"),
    *("--out", "--only", "--tiny"),
    *("--merge", "--scale", "--chaos-minutes", "--minutes"),
    *("--batch", "--config", "--model", "--model-base-url", "--tensor-parallel-size"),
    *("--system", "--shell", "--now", "--strict", "--profile"),
}


def sh_commands(blocks: list[Block]) -> list[str]:
    """The commands of these blocks that are to be run, installations cut off."""
    commands = []
    for block in blocks:
        if block.language == "sh" and block.not_run is None:
            for line in block.commands():
                parts = [part.strip() for part in line.split("&&")]
                commands += [part for part in parts if not part.startswith(INSTALLATION)]
    return commands


def sittings() -> dict[str, list[str]]:
    """What is typed in one clone: the commands of a page, of a section of README, or of the bench, in their order."""
    blocks: dict[str, list[Block]] = {}
    for block in BLOCKS:
        is_apart = block.page == "README" or (block.page, block.section) == BENCH
        name = f"{block.page}, {block.section}" if is_apart else block.page
        blocks.setdefault(name, []).append(block)
    return {name: commands for name, own in blocks.items() if (commands := sh_commands(own))}


SITTINGS = sittings()
QUICK_START = "README, Quick start"


COMMON_OPTIONS = {"--json", "--log-level"}


# What the pages hold


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_is_described_with_every_option(path):
    sections = PAGES["cli"].sections
    titles = [title for title in sections if path[0] in title.split(", ")]
    assert len(titles) == 1, f"give {path[0]} one section of docs/cli.md"
    section = sections[titles[0]].replace(r"\|", "|")
    assert f"`helix {' '.join(path)}" in section
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option) and not COMMON_OPTIONS & set(parameter.opts):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert names_option(section, option), f"{option} of {' '.join(path)}"
            if isinstance(parameter.type, click.Choice):
                assert "|".join(parameter.type.choices) in section, parameter.opts


def test_every_command_stands_in_readme_and_no_other():
    told = {
        tuple(word for word in name.split()[1:] if word == word.lower())
        for names, _ in PAGES["README"].rows("Commands")
        for name in code_words(names)
    }
    assert told == set(COMMANDS)


def test_common_options_are_described():
    for option in (*COMMON_OPTIONS, "--help", "-h", "--version"):
        assert names_option(PAGES["cli"].text, option)


def test_no_page_names_an_option_that_does_not_exist():
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--version"} | FOREIGN_OPTIONS
    prose = re.sub(r"\([^)\s]*#[^)]*\)|<!--.*?-->|\|-[-|]*\|", "", TEXT)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", prose)) <= known


def test_every_field_of_a_line_is_told_with_its_default():
    told = {code_words(name)[0]: default for name, default, _ in PAGES["formats"].rows("Fields of a line")}
    others = {"custom_id", "priority", "metadata", "chat_template_kwargs", "truncate_prompt", "truncate_prompt_tokens"}
    others |= {"choices", "score_by", "accept", "response_format", "structured_outputs", "adapter"}
    others |= {"enable_thinking", "reasoning_effort", "max_reasoning_tokens", "continue_final_message"}
    others |= {"add_generation_prompt", "tools", "tool_choice", "parallel_tool_calls"}
    assert set(told) == SAMPLING_FIELDS | others
    words = {None: "none", (): "none", False: "false"}
    assert told.pop("seed") == "from batch and line"
    for name in SAMPLING_FIELDS - {"seed"}:
        value = getattr(SamplingParams(), name)
        expected = words[value] if not isinstance(value, int | float) or value is False else f"{value:g}"
        assert told[name] == expected, name


def test_the_example_lines_are_accepted():
    blocks = [block for block in BLOCKS if block.language == "jsonl"]
    assert len(blocks) > 1
    for block in blocks:
        lines = list(LineReader(SamplingParams()).read(io.BytesIO(block.text.encode())))
        assert lines
        assert all(isinstance(line, NewJob) for line in lines), lines


def test_every_table_and_column_is_described():
    told = {code_words(name)[0]: code_words(columns) for name, _, columns in PAGES["sql"].rows("Tables")}
    assert set(told) == set(metadata.tables)
    for table in metadata.tables.values():
        # Beside its columns a cell names fields inside JSON.
        parts = {"prompt", "messages", "chat_template_kwargs", "sampling", "truncate_prompt", "seed", "metadata"}
        parts |= {
            "prompt_token_ids",
            "score_choices",
            "score_by",
            "accept",
            "constraint",
            "endpoint",
            "model",
            "adapter",
        }
        parts |= {"continue_final_message", "reasoning", "tools", "tool_choice", "parallel_tool_calls"}
        inside = {"batches": {"table"}, "jobs": parts, "results": {"sum", "mean", "tokens"}}.get(table.name, set())
        assert {column.name for column in table.columns} == set(told[table.name]) - inside


def test_the_columns_of_result_files_are_listed():
    (line,) = re.findall(r"^Columns: (.+)\.$", PAGES["formats"].sections["Results"], re.MULTILINE)
    assert code_words(line) == list(COLUMNS)


def test_states_error_codes_and_exit_codes_are_explained():
    sections = PAGES["cli"].sections
    assert {str(state) for state in (*BatchState, *JobState)} <= set(code_words(sections["status, list, watch"]))
    codes = {code_words(row[0])[0] for row in PAGES["formats"].rows("Error codes")}
    assert {str(code) for code in ErrorCode} <= codes
    told = {int(code): meaning.replace("`", "") for code, meaning in PAGES["cli"].rows("Exit codes")}
    assert told == EXIT_CODES
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert set(told) == raised | {0, 130}


def test_every_metric_is_described_as_it_is_served():
    told = [
        (code_words(name)[0], kind, tuple(code_words(labels)), meaning)
        for name, kind, labels, meaning in PAGES["monitoring"].rows("Metrics")
    ]
    assert told == [(metric.name, str(metric.kind), metric.labels, metric.meaning) for metric in METRICS]


# What the pages say runs


@pytest.fixture
def scene() -> Iterator[Scene]:
    """An empty clone in a short directory: a socket's path must fit."""
    if sys.platform == "win32":
        pytest.skip("the pages' commands are written for a POSIX shell")
    directory = Path(tempfile.mkdtemp(prefix="hx-"))
    scene = Scene(directory)
    try:
        yield scene
    finally:
        scene.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def finished_home() -> Iterator[Path]:
    """The HELIX_HOME that ``--local`` leaves behind."""
    if sys.platform == "win32":
        pytest.skip("the pages' commands are written for a POSIX shell")
    directory = Path(tempfile.mkdtemp(prefix="hx-"))
    scene = Scene(directory)
    done = scene.run("python submit.py prompts.jsonl --local")
    assert done.returncode == 0, done.stderr
    yield scene.home
    scene.close()
    shutil.rmtree(directory, ignore_errors=True)


def type_all(scene: Scene, commands: list[str]) -> None:
    """Type commands one after the other; each must end with exit code 0."""
    if not any(is_worker(command) or "--local" in command for command in commands):
        scene.start_worker()
    for command in commands:
        done = scene.type(command)
        assert done is None or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    scene.stop_worker()


def test_blocks_that_are_not_run_are_known():
    assert {(block.page, block.section, block.not_run) for block in BLOCKS if block.not_run is not None} == NOT_RUN


def test_the_newcomers_command_is_the_quick_start():
    assert SITTINGS[QUICK_START] == ["python submit.py examples/prompts.jsonl --local"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "sitting",
    [
        # Measuring the demo model takes as long as all other commands together.
        pytest.param(name, marks=pytest.mark.slow if name == ", ".join(BENCH) else ())
        for name in SITTINGS
        if name != SERVICES
    ],
)
def test_commands_run(sitting, scene, finished_home, demo_home, demo_kernels):
    if sitting != QUICK_START:
        shutil.copytree(finished_home, scene.home, ignore=shutil.ignore_patterns("*.sock", "*.lock"))
        # For helix bench; made once for all tests. Kernels are loaded from no folder that is a link, and from no copy.
        (scene.home / "models").symlink_to(demo_home / "models")
        (scene.home / "native").mkdir(mode=0o700)
        for library in demo_kernels.glob("*.so"):
            build._seal(Path(shutil.copy2(library, scene.home / "native")))
    type_all(scene, SITTINGS[sitting])


@pytest.mark.thorough
@pytest.mark.redis
@pytest.mark.postgres
def test_commands_and_queries_run_on_redis_and_postgres(scene, empty_postgres_url):
    redis_home = scene.directory / "redis"
    redis_home.mkdir()
    server = EmbeddedBroker(redis_home)
    server.start()
    try:
        services = {"HELIX_REDIS_URL": server.url, "HELIX_DATABASE_URL": empty_postgres_url}
        commands = SITTINGS[SERVICES]
        assert set(services) == {line.split("=")[0].removeprefix("export ") for line in commands if "export" in line}
        scene.environment |= services
        for command in commands:
            if not command.startswith("export "):
                done = scene.type(command)
                assert done is None or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        scene.stop_worker()
        assert not (scene.home / "helix.db").exists()
    finally:
        server.stop()
    with psycopg.connect(empty_postgres_url.replace("+psycopg", "")) as connection:
        for query, shown in QUERIES:
            cursor = connection.execute(query)
            assert cursor.description is not None
            assert [column.name for column in cursor.description] == shown.split("\n")[0].split()
            assert cursor.fetchall()


def queries() -> list[tuple[str, str]]:
    """Each query with the output that its page shows below it."""
    sql = [index for index, block in enumerate(BLOCKS) if block.language == "sql"]
    return [(BLOCKS[index].text, BLOCKS[index + 1].text) for index in sql]


QUERIES = queries()


def test_there_are_five_queries_with_output():
    assert len(QUERIES) == 5
    assert all(shown.split("\n")[1].startswith("--") for _, shown in QUERIES)


@pytest.mark.parametrize(("query", "shown"), QUERIES, ids=range(1, len(QUERIES) + 1))
def test_queries_run_on_sqlite(query, shown, finished_home):
    connection = sqlite3.connect(finished_home / "helix.db")
    cursor = connection.execute(query)
    assert [name for name, *_ in cursor.description] == shown.split("\n")[0].split()
    assert cursor.fetchall()
    connection.close()


RUN_AS_PYTHON = [block for block in BLOCKS if block.language == "python" and block.not_run is None]
PYTHON = {block.page: block.text for block in RUN_AS_PYTHON}
# What each page's example prints at its end, with the fake engine.
PRINTED = {
    "README": ["q0 Why is the sky blue?", "q1 Why is grass green?"],
    "python": ["1 bad line, nothing stored", "sea done"],
}


def test_every_python_example_is_known():
    assert set(PYTHON) == set(PRINTED)
    assert len(PYTHON) == len(RUN_AS_PYTHON)


@pytest.mark.thorough
@pytest.mark.parametrize("page", PYTHON)
def test_the_python_examples_run(page, scene):
    scene.start_worker()
    (scene.clone / "example.py").write_text(PYTHON[page], encoding="utf-8")
    done = scene.run("python example.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == PRINTED[page]
    assert "done" in done.stdout
    scene.stop_worker()


def test_bad_lines_are_listed_as_shown(scene):
    (shown,) = [block.text for block in PAGES["formats"].blocks if block.language == "text"]
    lines = ['{"prompt": ""}', '{"promt": "x"}', "nope", '{"prompt": "x", "temperature": -1}']
    (scene.clone / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = scene.run("python submit.py bad.jsonl")
    assert done.returncode == 2
    assert shown in done.stderr
