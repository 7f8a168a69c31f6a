"""README holds what Helix has, and what README says runs: commands, queries, Python, examples."""

from __future__ import annotations

import io
import re
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import click
import psycopg
import pytest
from readme_text import BLOCKS, ROOT, SECTIONS, TEXT, code_words, names_option, table_rows
from scene import Scene, is_worker

from helix_jobs import errors
from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.cli.group import cli
from helix_jobs.engine.fake_engine import FakeFaults
from helix_jobs.engine.kernels.cpu import build
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.intake.lines import JobRequest, read_lines
from helix_jobs.results.export import COLUMNS
from helix_jobs.settings import Settings
from helix_jobs.storage.schema import metadata
from helix_jobs.storage.states import BatchState, ErrorCode, JobState
from helix_jobs.worker.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

# Run by .ci/run, because they make an environment or run these tests.
INSTALLATION = ("python -m pip install ", "python -m pytest")
# Every block that nobody runs here, with the reason README gives. A new one must be entered by hand.
NOT_RUN = {
    ("Quick start", "makes an environment; .ci/run does the same"),
    ("Commands", "needs peers in environments of their own"),
    ("Models and devices", "needs Windows or WSL with a DirectX 12 device"),
    ("Redis, Postgres, Docker", "needs Docker"),
    ("Monitoring", "listens on a port that others may use"),
    ("Monitoring", "Flower is no part of Helix"),
    ("Security", "asks a service on the internet"),
    ("Development", ".ci/run does the same"),
    ("Development", "needs a GPU"),
    ("Development", "downloads an older torch"),
    ("Development", "takes an hour"),
}
SERVICES = "Redis, Postgres, Docker"
# Options of other programs, or of the tests, that README names.
FOREIGN_OPTIONS = {
    *("--address", "--port", "--check", "--disable-pip", "--no-deps", "--faults-table", "--soak-minutes"),
    *("--out", "--only", "--tiny"),
    *("--merge", "--scale", "--chaos-minutes", "--minutes"),
}


def sh_commands(section: str) -> list[str]:
    """The commands of a section that are to be run, installations cut off."""
    commands = []
    for block in BLOCKS:
        if block.section == section and block.language == "sh" and block.not_run is None:
            for line in block.commands():
                parts = [part.strip() for part in line.split("&&")]
                commands += [part for part in parts if not part.startswith(INSTALLATION)]
    return commands


SHELL_SECTIONS = [section for section in SECTIONS if sh_commands(section)]


def all_commands() -> dict[tuple[str, ...], click.Command]:
    context = click.Context(cli)
    leaves: dict[tuple[str, ...], click.Command] = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            leaves |= {(name, inner): command.commands[inner] for inner in command.commands}
        else:
            leaves[(name,)] = command
    return leaves


COMMANDS = all_commands()
COMMON_OPTIONS = {"--json", "--log-level"}


# What README holds


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_stands_in_readme_with_every_option(path):
    titles = [title for title in SECTIONS if path[0] in title.split(", ")]
    assert len(titles) == 1, f"give {path[0]} one subsection of Commands"
    section = SECTIONS[titles[0]].replace(r"\|", "|")
    assert f"`helix {' '.join(path)}" in section
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option) and not COMMON_OPTIONS & set(parameter.opts):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert names_option(section, option), f"{option} of {' '.join(path)}"
            if isinstance(parameter.type, click.Choice):
                assert "|".join(parameter.type.choices) in section, parameter.opts


def test_common_options_stand_in_readme():
    for option in (*COMMON_OPTIONS, "--help", "-h", "--version"):
        assert names_option(SECTIONS["Commands"], option)


def test_readme_names_no_option_that_does_not_exist():
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "--version"} | FOREIGN_OPTIONS
    prose = re.sub(r"\(#[^)]*\)|<!--.*?-->|\|-[-|]*\|", "", TEXT)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", prose)) <= known


def settings_in_source() -> set[str]:
    tests = [*(ROOT / "tests").rglob("conftest.py"), ROOT / "tests" / "acceptance" / "test_store_machine.py"]
    files = [*(ROOT / "helix_jobs").rglob("*.py"), ROOT / "docker-compose.yml", *tests]
    literal = re.compile(r"HELIX_[A-Z_]*[A-Z](?![A-Z_])")
    found = {name for file in files for name in literal.findall(file.read_text(encoding="utf-8"))}
    options = [parameter for command in COMMANDS.values() for parameter in command.params]
    found |= {option.envvar for option in options if isinstance(option.envvar, str)}
    found |= {f"HELIX_FAKE_{name.upper()}" for name in FakeFaults.__slots__}
    return found | set(Settings.from_environment({}).to_environment())


def test_every_setting_stands_in_readme_and_no_other():
    assert set(re.findall(r"HELIX_[A-Z_]*[A-Z]", SECTIONS["Settings"])) == settings_in_source()
    assert set(re.findall(r"HELIX_[A-Z_]*[A-Z]", TEXT)) <= settings_in_source()


def test_the_defaults_of_settings_are_told_right():
    defaults = Settings.from_environment({})
    told = {code_words(name)[0]: default for name, default, _ in table_rows("Settings")}
    assert told.pop("HELIX_HOME") == f"`{defaults.home.relative_to(Path.cwd())}`"
    assert told.pop("HELIX_DATABASE_URL") == "SQLite `helix.db` under `HELIX_HOME`"
    assert defaults.database_url == f"sqlite:///{defaults.home / 'helix.db'}"
    assert told.pop("HELIX_LOCK_DIR") == "`/run/lock/helix-UID`, or under `/tmp` where that is not writable"
    assert defaults.lock_dir is None
    assert told.pop("HELIX_SPECULATION_DEPTH") == "`auto`"
    assert defaults.speculation_depth is None
    for name, default in told.items():
        value = getattr(defaults, name.removeprefix("HELIX_").lower())
        assert default == ("none" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`")
    apart = {"HELIX_HOME", "HELIX_DATABASE_URL", "HELIX_LOCK_DIR", "HELIX_SPECULATION_DEPTH"}
    assert told.keys() | apart == set(defaults.to_environment())


def test_every_field_of_a_line_is_told_with_its_default():
    told = {code_words(name)[0]: default for name, default, _ in table_rows("Input")}
    assert set(told) == SAMPLING_FIELDS | {"custom_id", "priority", "metadata", "chat_template_kwargs"}
    words = {None: "from batch and line", (): "none", False: "false"}
    for name in SAMPLING_FIELDS:
        value = getattr(SamplingParams(), name)
        expected = words[value] if not isinstance(value, int | float) or value is False else f"{value:g}"
        assert told[name] == expected, name


def test_the_example_lines_are_accepted():
    (block,) = [block for block in BLOCKS if block.language == "jsonl"]
    lines = list(read_lines(io.BytesIO(block.text.encode()), SamplingParams(), batch_id="b"))
    assert len(lines) == 3
    assert all(isinstance(line, JobRequest) for line in lines), lines


def test_every_table_and_column_stands_in_readme():
    told = {code_words(name)[0]: code_words(columns) for name, _, columns in table_rows("SQL")}
    assert set(told) == set(metadata.tables)
    for table in metadata.tables.values():
        # Beside its columns a cell names fields inside JSON.
        parts = {"prompt", "messages", "chat_template_kwargs", "sampling", "seed", "metadata"}
        inside = parts if table.name == "jobs" else set()
        assert {column.name for column in table.columns} == set(told[table.name]) - inside


def test_the_columns_of_result_files_stand_in_readme():
    (line,) = re.findall(r"^Columns: (.+)\.$", SECTIONS["Results"], re.MULTILINE)
    assert code_words(line) == list(COLUMNS)


def test_states_error_codes_and_exit_codes_stand_in_readme():
    assert {str(state) for state in (*BatchState, *JobState)} <= set(code_words(SECTIONS["status, list, watch"]))
    codes = {code_words(row[0])[0] for row in table_rows("Results") if row[0].startswith("`")}
    assert {str(code) for code in ErrorCode} <= codes
    exits = {int(row[0]) for row in table_rows("Exit codes")}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert exits == raised | {0, 130}


def test_every_metric_stands_in_readme_as_it_is_served():
    told = [
        (code_words(name)[0], kind, tuple(code_words(labels)), meaning)
        for name, kind, labels, meaning in table_rows("Metrics")
    ]
    assert told == [(metric.name, str(metric.kind), metric.labels, metric.meaning) for metric in METRICS]


def test_links_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in SECTIONS}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target).is_file(), target
    ET.parse(ROOT / "docs" / "flow.svg")  # noqa: S314  (our own file)


# What README says runs


@pytest.fixture
def scene() -> Iterator[Scene]:
    """An empty clone in a short directory: a socket's path must fit."""
    if sys.platform == "win32":
        pytest.skip("README's commands are written for a POSIX shell")
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
        pytest.skip("README's commands are written for a POSIX shell")
    directory = Path(tempfile.mkdtemp(prefix="hx-"))
    scene = Scene(directory)
    done = scene.run("python submit.py prompts.jsonl --local")
    assert done.returncode == 0, done.stderr
    yield scene.home
    scene.close()
    shutil.rmtree(directory, ignore_errors=True)


def type_all(scene: Scene, section: str) -> None:
    """Type a section's commands one after the other; each must end with exit code 0."""
    commands = sh_commands(section)
    if not any(is_worker(command) or "--local" in command for command in commands):
        scene.start_worker()
    for command in commands:
        done = scene.type(command)
        assert done is None or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    scene.stop_worker()


def test_blocks_that_are_not_run_are_known():
    assert {(block.section, block.not_run) for block in BLOCKS if block.not_run is not None} == NOT_RUN


def test_the_newcomers_command_is_the_quick_start():
    assert sh_commands("Quick start") == ["python submit.py examples/prompts.jsonl --local"]


@pytest.mark.parametrize("section", [section for section in SHELL_SECTIONS if section != SERVICES])
def test_commands_run(section, scene, finished_home, demo_home, demo_kernels):
    if section != "Quick start":
        shutil.copytree(finished_home, scene.home, ignore=shutil.ignore_patterns("*.sock", "*.lock"))
        # For helix bench; made once for all tests. Kernels are loaded from no folder that is a link, and from no copy.
        (scene.home / "models").symlink_to(demo_home / "models")
        shutil.copytree(demo_kernels, scene.home / "native")
        for library in scene.home.glob("native/*.so"):
            build._seal(library)
    type_all(scene, section)


@pytest.mark.redis
@pytest.mark.postgres
def test_commands_and_queries_run_on_redis_and_postgres(scene, empty_postgres_url):
    redis_home = scene.directory / "redis"
    redis_home.mkdir()
    server = EmbeddedBroker(redis_home)
    server.start()
    try:
        services = {"HELIX_REDIS_URL": server.url, "HELIX_DATABASE_URL": empty_postgres_url}
        commands = sh_commands(SERVICES)
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
    """Each query with the output that README shows below it."""
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


def test_the_python_example_runs(scene):
    (block,) = [block for block in BLOCKS if block.language == "python"]
    scene.start_worker()
    (scene.clone / "example.py").write_text(block.text, encoding="utf-8")
    done = scene.run("python example.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["q0 Why is the sky blue?", "q1 Why is grass green?"]
    assert "done" in done.stdout
    scene.stop_worker()


def test_bad_lines_are_listed_as_readme_shows(scene):
    (shown,) = [block.text for block in BLOCKS if block.section == "Input" and block.language == "text"]
    lines = ['{"prompt": ""}', '{"promt": "x"}', "nope", '{"prompt": "x", "temperature": -1}']
    (scene.clone / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    done = scene.run("python submit.py bad.jsonl")
    assert done.returncode == 2
    assert shown in done.stderr
