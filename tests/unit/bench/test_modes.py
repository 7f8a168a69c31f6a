from __future__ import annotations

import pytest

from helix_jobs.bench.modes import Mode, all_modes, parse_speculation
from helix_jobs.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "mode"), [("off", "off"), (" AUTO ", "auto"), ("0", "off"), ("4", "4"), ("04", "4"), ("16", "16")]
)
def test_speculation_is_read(text, mode):
    assert parse_speculation(text) == mode


@pytest.mark.parametrize("text", ["", "on", "17", "-1", "4.0", "²"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="off, auto or a depth"):
        parse_speculation(text)


def test_off_is_measured_once_whatever_the_drafts():
    modes = all_modes(("int8", "lookup"), ("off", "4", "auto"))
    labels = [mode.label for mode in modes]
    assert labels == ["off", "int8 K=4", "lookup K=4", "int8 auto", "lookup auto"]


def test_none_drafts_nothing():
    assert all_modes(("none",), ("off", "auto")) == (Mode("off"),)
    with pytest.raises(ConfigurationError, match="needs a draft"):
        all_modes(("none",), ("auto", "4"))


def test_labels_leave_directories_out():
    assert Mode("auto", "lookup+/models/small-one").label == "lookup+small-one auto"


def test_modes_are_told_to_the_engine_in_its_words():
    off = Mode("off").speculation_config()
    assert (off.is_on, off.drafters) == (False, ())
    fixed = Mode("3", "int8").speculation_config()
    assert (fixed.depth, fixed.adaptive, fixed.drafters) == (3, False, ())
    adaptive = Mode("auto", "lookup+int8").speculation_config()
    assert (adaptive.adaptive, adaptive.drafters) == (True, ("lookup",))
