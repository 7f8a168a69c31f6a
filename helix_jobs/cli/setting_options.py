"""Options that override settings. ``Settings`` declares their types, ranges and help."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from helix_jobs.errors import ConfigurationError
from helix_jobs.setting import Choice, Directories, WholeNumber
from helix_jobs.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.setting import Setting
    from helix_jobs.settings import Settings


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings, each under its field's name; None if not given."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            function = _option(SETTINGS[name])(function)
        return function

    return decorate


def with_options(settings: Settings, options: dict[str, Any]) -> Settings:
    """The settings, overridden by the given options.

    Args:
        settings: The settings of the environment.
        options: Field's name -> the option's value; None if not given.
    """
    given: dict[str, Any] = {
        name: SETTINGS[name].read(value) if isinstance(value, str) else value
        for name, value in options.items()
        if value is not None
    }
    return dataclasses.replace(settings, **given)


def _option(setting: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    kind = setting.kind
    attributes: dict[str, Any] = {"help": setting.help, "metavar": setting.metavar, "default": None}
    if isinstance(kind, Choice):
        if "on" in kind.words:
            attributes |= {"callback": _switch, "is_flag": True}
        else:
            attributes["type"] = click.Choice(kind.words)
    elif isinstance(kind, Directories):
        attributes |= {"callback": _joined, "multiple": True}
    elif isinstance(kind, WholeNumber):
        if kind.none:
            attributes["callback"] = _number_or_word(setting, kind)
        elif kind.is_float:
            attributes["type"] = click.FloatRange(kind.low, kind.high)
        else:
            attributes["type"] = click.IntRange(kind.low, kind.high)
    option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
        setting.option, setting.name, **attributes
    )
    return option


def _joined(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> str | None:
    return ",".join(values) or None


def _switch(_context: click.Context, _option: click.Parameter, value: bool | None) -> str | None:
    return None if value is None else "on" if value else "off"


def _number_or_word(setting: Setting, kind: WholeNumber) -> Callable[[click.Context, click.Parameter, Any], str | None]:
    """A callback that checks the value, so that the error names the option."""

    def check(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
        if text is None:
            return None
        accepted = f"give {kind.none}, or a whole number from {kind.low} (off) to {kind.high}"
        refusal = click.BadParameter(f"{text!r}; {accepted}")
        # A variable may also have capitals, a sign, spaces, _ or digits of any script; an option never took these.
        if text != kind.none and not (text.isascii() and text.isdecimal()):
            raise refusal
        try:
            setting.read(text)
        except ConfigurationError as error:
            raise refusal from error
        return text

    return check
