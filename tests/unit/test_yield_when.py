"""By which signs a worker yields by itself, as a setting says it."""

from __future__ import annotations

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.yield_when import YieldWhen, checked_yield_when


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("load>50%", YieldWhen(load=0.5)),
        (" load > 5 % ,memory>99%", YieldWhen(load=0.05, memory=0.99)),
        ("process:blender", YieldWhen(processes=("blender",))),
        ("process: My Game.exe, process:X, memory>1%", YieldWhen(memory=0.01, processes=("My Game.exe", "X"))),
    ],
)
def test_signs_are_read(text: str, when: YieldWhen) -> None:
    assert YieldWhen.parse(text) == when
    assert checked_yield_when(text) == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"),
        ("load", "'load'"),
        ("load>0%", "'load>0%'"),
        ("load>100%", "'load>100%'"),
        ("load>0.5", "'load>0.5'"),
        ("load<50%", "'load<50%'"),
        ("load>50%,", "''"),
        ("load>50%, load>60%", "'load>60%'"),
        ("process:", "'process:'"),
        ("disk>50%", "'disk>50%'"),
    ],
)
def test_what_is_no_sign_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match="HELIX_YIELD_WHEN has") as caught:
        checked_yield_when(text)
    assert named in str(caught.value)
