"""docs/settings.md holds every setting, with its default and what it takes; README's table is a part of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helix_jobs.engine.fake_faults import FakeFaults
from helix_jobs.setting import Choice, WholeNumber
from helix_jobs.settings import SETTINGS, Settings
from tests.acceptance.commands import COMMANDS
from tests.acceptance.readme_text import PAGES, ROOT, TEXT, code_words

if TYPE_CHECKING:
    from helix_jobs.setting import Setting


def settings_in_source() -> set[str]:
    tests = [*(ROOT / "tests").rglob("conftest.py"), ROOT / "tests" / "acceptance" / "test_store_machine.py"]
    tests.append(ROOT / "tests" / "unit" / "engine" / "text" / "test_real_tokenizers.py")
    tests.append(ROOT / "tests" / "acceptance" / "test_endpoint_servers.py")
    tests.append(ROOT / "tests" / "acceptance" / "test_commands_million.py")
    tests.append(ROOT / "tests" / "integration" / "test_serve_crowd.py")
    files = [*(ROOT / "helix_jobs").rglob("*.py"), ROOT / "docker-compose.yml", *tests]
    literal = re.compile(r"HELIX_[A-Z_]*[A-Z](?![A-Z_])")
    found = {name for file in files for name in literal.findall(file.read_text(encoding="utf-8"))}
    options = [parameter for command in COMMANDS.values() for parameter in command.params]
    found |= {option.envvar for option in options if isinstance(option.envvar, str)}
    found |= {f"HELIX_FAKE_{name.upper()}" for name in FakeFaults.__slots__}
    return found | set(Settings.from_environment({}).to_environment())


def test_every_setting_is_described_and_no_other():
    assert set(re.findall(r"HELIX_[A-Z_]*[A-Z]", PAGES["settings"].text)) == settings_in_source()
    assert set(re.findall(r"HELIX_[A-Z_]*[A-Z]", TEXT)) <= settings_in_source()


def test_the_defaults_of_settings_are_told_right():
    defaults = Settings.from_environment({})
    told = {code_words(name)[0]: default for name, default, _ in PAGES["settings"].rows("Settings")}
    assert told.pop("HELIX_HOME") == f"`{defaults.home.relative_to(Path.cwd())}`"
    assert told.pop("HELIX_DATABASE_URL") == "SQLite `helix.db` under `HELIX_HOME`"
    assert defaults.database_url == f"sqlite:///{defaults.home / 'helix.db'}"
    assert told.pop("HELIX_LOCK_DIR") == "`/run/lock/helix-UID/locks`, or under `/tmp` where that is not writable"
    assert defaults.lock_dir is None
    assert told.pop("HELIX_SPECULATION_DEPTH") == "`auto`"
    assert defaults.speculation_depth is None
    by_variable = {setting.variable: setting for setting in SETTINGS.values()}
    for name, default in told.items():
        value = by_variable[name].default
        assert default == ("none" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`")
    apart = {"HELIX_HOME", "HELIX_DATABASE_URL", "HELIX_LOCK_DIR", "HELIX_SPECULATION_DEPTH"}
    assert told.keys() | apart == by_variable.keys()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_a_setting_takes_is_told_right(setting: Setting):
    told = {
        code_words(name)[0]: f"{default} {meaning}" for name, default, meaning in PAGES["settings"].rows("Settings")
    }
    words = told[setting.variable]
    if isinstance(setting.kind, Choice):
        assert set(setting.kind.words) <= set(code_words(words))
    if isinstance(setting.kind, WholeNumber):
        low, high = str(setting.kind.low), str(setting.kind.high)
        ranges = {*re.findall(r"(\d+)(?: \(off\))? to (\d+)", words), *re.findall(r"(up) to (\d+)", words)}
        assert ranges
        assert ranges <= {(low, high), ("up", high)}
    if setting.option and "`--" in words:
        assert set(re.findall(r"--[a-z-]+", words)) == set(setting.option.split("/"))


def test_the_settings_of_readme_are_those_of_the_page():
    full = {name: default for name, default, _ in PAGES["settings"].rows("Settings")}
    shown = {name: default for name, default, _ in PAGES["README"].rows("Settings")}
    assert shown.items() <= full.items()
