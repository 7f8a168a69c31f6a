from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.observability.logging import configure_logging


@pytest.fixture
def stream():
    return io.StringIO()


def log_of(name: str) -> logging.Logger:
    return logging.getLogger(f"helix_jobs.{name}")


def test_text_has_time_level_module_message_and_extras(stream):
    configure_logging("info", "text", stream)
    log_of("worker.process").info("run %d ended", 7, extra={"tokens_per_second": 42.5, "worker_id": None})
    line = stream.getvalue()
    datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007  (the local time's own text)
    assert line[19:] == " INFO    worker.process: run 7 ended  tokens_per_second=42.5\n"


def test_json_is_one_object_a_line_with_extras_that_replace_nothing(stream):
    configure_logging("info", "json", stream)
    log_of("worker").warning(
        "two\nlines", extra={"batch_id": "b-1", "level": "loud", "where": {"a": 1}, "odd": float("nan")}
    )
    try:
        int("no")
    except ValueError:
        log_of("worker").exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "helix_jobs.worker", "two\nlines")
    assert (first["batch_id"], first["where"], first["odd"]) == ("b-1", {"a": 1}, "nan")
    assert datetime.fromisoformat(first["time"]).utcoffset().total_seconds() == 0
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("ValueError: invalid literal for int() with base 10: 'no'")


def test_figures_are_keys_in_json_and_left_to_the_words_in_text(stream):
    configure_logging("info", "json", stream)
    extra = {"job_id": 3, "figures": {"jobs_finished": 7, "job_id": 4, "message": "no"}}
    log_of("jobs.runs").info("7 jobs", extra=extra)
    value = json.loads(stream.getvalue())
    assert (value["message"], value["jobs_finished"], value["job_id"]) == ("7 jobs", 7, 3)
    assert "figures" not in value
    configure_logging("info", "text", stream)
    log_of("jobs.runs").info("7 jobs", extra=extra)
    assert stream.getvalue().endswith(" INFO    jobs.runs: 7 jobs  job_id=3\n")


@pytest.mark.parametrize(("level", "shown"), [("info", 0), ("debug", 1)])
def test_migrations_speak_at_debug_only(stream, level, shown):
    configure_logging(level, "text", stream)
    logging.getLogger("alembic.runtime.migration").info("Running upgrade")
    assert stream.getvalue().count("Running upgrade") == shown


def test_level_holds_for_helix_and_libraries_are_quieter(stream):
    configure_logging("info", "text", stream)
    log_of("worker").debug("hidden")
    logging.getLogger("sqlalchemy").info("hidden")
    logging.getLogger("sqlalchemy").warning("shown")
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["shown"]


def test_configuring_again_replaces_the_handler(stream):
    later = io.StringIO()
    configure_logging("info", "json", stream)
    configure_logging("info", "text", later)
    log_of("x").info("once")
    assert stream.getvalue() == ""
    assert later.getvalue().count("once") == 1


def test_without_a_stream_each_record_goes_to_the_current_standard_error(stream, monkeypatch):
    configure_logging("info", "text")
    monkeypatch.setattr(sys, "stderr", stream)
    log_of("x").info("found it")
    assert "found it" in stream.getvalue()


@pytest.mark.parametrize(("level", "fmt"), [("loud", "text"), ("info", "xml")])
def test_unknown_level_or_format_is_a_configuration_error(level, fmt):
    with pytest.raises(ConfigurationError, match="use one of"):
        configure_logging(level, fmt)


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_passwords_are_redacted_in_message_extras_and_traceback(stream, fmt):
    configure_logging("info", fmt, stream)
    url = "redis://:hunter22@host/0"
    try:
        int(url)
    except ValueError:
        log_of("x").exception("at %s", url, extra={"url": url, "urls": [url]})
    assert "hunter22" not in stream.getvalue()
    assert stream.getvalue().count("***") == 4


def test_what_others_wrote_cannot_forge_a_line_or_drive_a_terminal(stream):
    configure_logging("info", "text", stream)
    log_of("x").info("id %s", "a\n2026-01-01 00:00:00 ERROR \x1b[2J", extra={"message_id": "b\r\n\x9bc"})
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("id a")
    assert others == [r"    2026-01-01 00:00:00 ERROR \x1b[2J  message_id=b\x0d", r"    \x9bc"]


def test_celery_leaves_logging_alone():
    script = """
import celery, celery.signals, logging
from helix_jobs.observability.logging import configure_logging
app = celery.Celery("x", broker="memory://")
configure_logging("info", "json")
before = list(logging.getLogger().handlers), logging.getLogger().level
app.log.setup(loglevel="DEBUG", redirect_stdouts=False)
assert (list(logging.getLogger().handlers), logging.getLogger().level) == before, logging.getLogger().handlers
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
