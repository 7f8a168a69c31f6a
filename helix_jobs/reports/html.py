"""HTML from templates: every value is escaped. The files of this room also run no script and load nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined

from helix_jobs._version import __version__
from helix_jobs.plain_text import paragraphs, printable, shorten
from helix_jobs.wording import counted, data_size, duration, percent, rate

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of a long text, so much is shown: a page has many, and a browser has to lay out each.
MOST_CHARS: Final = 4000


def _name(text: str | None, limit: int = 120) -> str:
    """A stranger's name on one line: no control and no bidirectional characters, and not longer than a line."""
    return shorten(printable((text or "")[: 4 * limit + 4]), limit)


def _prose(text: str | None, limit: int = MOST_CHARS) -> str:
    """A stranger's text, without characters that change how others are shown; a long one is cut."""
    shown = paragraphs((text or "")[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}… [cut here]"


def make_environment(loader: BaseLoader, moment_form: str) -> Environment:
    """Templates in which every value is escaped, with the filters that all of them share.

    Args:
        loader: Finds the templates.
        moment_form: How times of this machine's time zone are shown, for ``strftime``.
    """
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "name": _name,
        "moment": lambda moment: "" if moment is None else moment.astimezone().strftime(moment_form),
        "number": lambda value: f"{value:,}",
        "counted": counted,
        "data_size": data_size,
        "duration": duration,
        "percent": percent,
        "rate": rate,
    }
    environment.globals["version"] = __version__
    return environment


TEMPLATES: Final = PackageLoader("helix_jobs.reports", "templates")
_ENVIRONMENT: Final = make_environment(TEMPLATES, "%Y-%m-%d %H:%M:%S")
_ENVIRONMENT.filters["prose"] = _prose


def render(name: str, **values: Any) -> Iterator[bytes]:  # noqa: ANN401  (whatever a template shows)
    """A page, part by part, as bytes of UTF-8."""
    for part in _ENVIRONMENT.get_template(name).generate(values):
        # Half of a surrogate pair has no bytes.
        yield part.encode("utf-8", "replace")
