"""Check that the installed Python, torch and transformers work together."""

from __future__ import annotations

import importlib
import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from packaging.version import Version

from helix_jobs.doctor.verdict import Level, Verdict

if TYPE_CHECKING:
    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)

# From this release on, transformers refuses the older torch that torch-directml pins.
_DEMANDING_TRANSFORMERS: Final = Version("5.20")
_DEMANDED_TORCH: Final = Version("2.6")


def check_software(_settings: Settings) -> list[Verdict]:
    """Name the installed releases, and check that they can be used."""
    return [
        Verdict("python", Level.OK, f"{platform.python_version()} on {platform.platform()}"),
        _import("torch"),
        _check_transformers(),
    ]


def _check_transformers() -> Verdict:
    torch, transformers = _installed("torch"), _installed("transformers")
    if torch is None or transformers is None:
        return _import("transformers")
    if transformers >= _DEMANDING_TRANSFORMERS and torch < _DEMANDED_TORCH:
        finding = f"{transformers} needs torch {_DEMANDED_TORCH} or newer, and torch is {torch}"
        remedy = 'python -m pip install "transformers>=4.57,<4.58"'
        return Verdict("transformers", Level.FAILED, finding, remedy)
    return _import("transformers")


def _import(name: str) -> Verdict:
    found = _installed(name)
    if found is None:
        return Verdict(name, Level.FAILED, "not installed", "install Helix again, as README says")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a damaged installation, or a missing system library
        logger.debug("%s cannot be imported", name, exc_info=True)
        finding = f"{found} cannot be imported ({type(error).__name__}: {error})"
        return Verdict(name, Level.FAILED, finding, f"python -m pip install --force-reinstall {name}")
    # The module's own version also names the build: 2.13.0+cpu.
    return Verdict(name, Level.OK, getattr(module, "__version__", str(found)))


def _installed(name: str) -> Version | None:
    try:
        return Version(version(name))
    except PackageNotFoundError:
        return None
