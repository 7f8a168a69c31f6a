"""Find HELIX_* variables without a meaning: most are misspelt, so the setting a person wanted keeps its default."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Final

from helix_jobs.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PREFIX: Final = "HELIX_"
# Variables of the fake engine, the tests, the compose file and the Helix text editor.
_OTHERS: Final = tuple(f"{_PREFIX}{name}" for name in ("FAKE_", "TEST_", "POSTGRES_PASSWORD", "RUNTIME"))


def misspelt_settings(environment: Mapping[str, str], further: Iterable[str] = ()) -> list[str]:
    """A sentence about each variable that looks like a setting but is not one.

    Args:
        environment: All variables.
        further: Names of variables that options read, beside the settings.
    """
    known = {f"{_PREFIX}{field.name.upper()}" for field in dataclasses.fields(Settings)} | set(further)
    suffixes = {name.removeprefix(_PREFIX): name for name in sorted(known)}
    sentences = []
    for name in sorted(environment):
        if not name.startswith(_PREFIX) or name in known or name.startswith(_OTHERS) or not environment[name].strip():
            continue
        close = difflib.get_close_matches(name.removeprefix(_PREFIX), suffixes, n=1, cutoff=0.6)
        hint = f"; did you mean {suffixes[close[0]]}?" if close else ""
        sentences.append(f"{name} is no setting of Helix and is ignored{hint}")
    return sentences
