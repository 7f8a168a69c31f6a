"""Scenario: one way of breaking things; a function in a file of ``scenarios/`` under the decorator ``scenario``."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.acceptance.faults import scenarios

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted


DATABASES = ("sqlite", "postgres")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it: jobs in all and faults in all, as the scenario understands them."""

    jobs: int
    faults: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a scenario did.

    Attributes:
        accepted: Every batch that was accepted.
        faults: Faults injected.
        recoveries: Seconds from each fault until what it hit was in hand again.
        note: What else belongs in the table.
    broken: What the scenario itself found not to hold, in words.
        steady_clock: See ``oracle.judge``.
    """

    accepted: Sequence[Accepted]
    faults: int
    recoveries: Sequence[float] = ()
    note: str = ""
    broken: tuple[str, ...] = ()
    steady_clock: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Attributes:

    name: As the table calls it.
    run: Breaks an installation and waits until it is whole again; leaves a living worker behind.
    quick: In the default run of the tests, with short leases; None leaves it out.
    full: In the full form, with the product's own times.
    databases: Those it applies to; the full form is for each of them.
    quick_on: Those of the quick form, which need not show everything twice.
    """

    name: str
    run: Callable[[Installation, Size], Outcome]
    quick: Size | None
    full: Size
    databases: tuple[str, ...]
    quick_on: tuple[str, ...]


_registry: list[Scenario] = []


def scenario(
    name: str,
    *,
    full: Size,
    quick: Size | None = None,
    databases: tuple[str, ...] = DATABASES,
    quick_on: tuple[str, ...] = DATABASES,
) -> Callable[[Callable[[Installation, Size], Outcome]], Scenario]:
    """Register a function as a scenario."""

    def register(run: Callable[[Installation, Size], Outcome]) -> Scenario:
        made = Scenario(name=name, run=run, quick=quick, full=full, databases=databases, quick_on=quick_on)
        _registry.append(made)
        return made

    return register


def all_scenarios() -> list[Scenario]:
    """Every scenario, in the order of their files' names."""
    for module in sorted(pkgutil.iter_modules(scenarios.__path__), key=lambda module: module.name):
        importlib.import_module(f"{scenarios.__name__}.{module.name}")
    return list(_registry)
