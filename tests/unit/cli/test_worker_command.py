"""The worker command's flags become settings; the worker itself is another test's."""

from __future__ import annotations

import pytest

from helix_jobs.settings import SETTINGS
from helix_jobs.worker import process as worker_module


@pytest.fixture
def effective(helix, monkeypatch):
    """``effective("--dtype", "int8")`` is the settings the worker would run with."""

    def run(*arguments, **environment):
        seen = []
        monkeypatch.delenv("HELIX_COMPILE", raising=False)  # the tests' own default
        monkeypatch.setattr(worker_module, "run_worker", lambda settings, **_: seen.append(settings) or 0)
        result = helix("worker", *arguments, env=environment)
        assert result.exit_code == 0, result.output
        return seen[0]

    return run


def test_without_flags_the_settings_stand(effective):
    plain = effective()
    assert (plain.draft_model, plain.speculation_depth, plain.compile) == ("lookup+int8", None, "auto")
    settings = effective(HELIX_SPECULATION_DEPTH="3", HELIX_COMPILE="off", HELIX_DTYPE="int8", HELIX_DRAFT_MODEL="none")
    assert (settings.speculation_depth, settings.compile) == (3, "off")
    assert (settings.dtype, settings.draft_model) == ("int8", "none")


@pytest.mark.parametrize(("text", "depth"), [("auto", None), ("0", 0), ("16", 16)])
def test_the_depth_flag_goes_before_the_setting(effective, text, depth):
    assert effective("--speculation-depth", text, HELIX_SPECULATION_DEPTH="3").speculation_depth == depth


@pytest.mark.parametrize("text", ["17", "-1", "four", "", "²", "AUTO", "+3", " 4", "1_0", "٣", "-0"])
def test_other_depths_are_refused_with_what_is_accepted(helix, monkeypatch, text):
    monkeypatch.setattr(worker_module, "run_worker", lambda *_, **__: 0)  # should one be accepted
    result = helix("worker", "--speculation-depth", text)
    assert result.exit_code == 2
    assert "'--speculation-depth'" in result.output
    assert "give auto, or a whole number from 0 (off) to 16" in result.output


@pytest.mark.parametrize(("flag", "when"), [("--compile", "on"), ("--no-compile", "off")])
def test_the_compile_flags_go_before_the_setting(effective, flag, when):
    assert effective(flag, HELIX_COMPILE="auto").compile == when


def test_draft_and_dtype(effective):
    settings = effective("--draft", "lookup+some/model", "--dtype", "int8", HELIX_DTYPE="float32")
    assert (settings.draft_model, settings.dtype) == ("lookup+some/model", "int8")


def test_an_unknown_dtype_is_refused(helix):
    result = helix("worker", "--dtype", "int4")
    assert result.exit_code == 2
    assert "int8" in result.output


@pytest.mark.parametrize(
    "name", ["max_batch_size", "token_budget", "kv_cache_mb", "shutdown_grace", "job_timeout", "metrics_port"]
)
def test_an_option_takes_what_its_variable_takes(effective, helix, name):
    setting = SETTINGS[name]
    flag, kind = setting.option, setting.kind
    for value in (kind.low, kind.high):
        assert getattr(effective(flag, value), name) == getattr(effective(**{setting.variable: str(value)}), name)
    for value in (kind.low - 1, kind.high + 1):
        assert helix("worker", flag, value).exit_code == 2


def test_a_grace_time_by_option_may_have_decimals(effective):
    assert effective("--shutdown-grace", "0.5", HELIX_SHUTDOWN_GRACE="7").shutdown_grace == 0.5
    assert effective("--reproducible").reproducible == "on"


def test_adapters_are_given_one_by_one_and_go_before_the_setting(effective, tmp_path):
    given = effective("--adapter", f"a={tmp_path}", "--adapter", "b=/x", HELIX_ADAPTERS="c=/y").adapters
    assert [(name, str(folder)) for name, folder in given] == [("a", str(tmp_path)), ("b", "/x")]
    assert [name for name, _ in effective(HELIX_ADAPTERS="c=/y").adapters] == ["c"]
