"""HTML files that need nothing from outside: every value is escaped, no script runs, nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from helix_jobs._version import __version__
from helix_jobs.plain_text import paragraphs, printable, shorten
from helix_jobs.wording import counted, data_size, duration, percent, rate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

# Of a long text, so much is shown: a page has many, and a browser has to lay out each.
MOST_CHARS: Final = 4000


def _name(text: str | None, limit: int = 120) -> str:
    """A stranger's name on one line, not longer than one."""
    return shorten(printable((text or "")[: 4 * limit + 4]), limit)


def _prose(text: str | None, limit: int = MOST_CHARS) -> str:
    """A stranger's text, without characters that change how others are shown; a long one is cut."""
    shown = paragraphs((text or "")[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[:limit]}… [cut here]"


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


ENVIRONMENT: Final = Environment(
    loader=PackageLoader("helix_jobs.reports", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "name": _name,
    "prose": _prose,
    "moment": _moment,
    "number": lambda value: f"{value:,}",
    "counted": counted,
    "data_size": data_size,
    "duration": duration,
    "percent": percent,
    "rate": rate,
}
ENVIRONMENT.globals["version"] = __version__


def render(name: str, **values: Any) -> Iterator[bytes]:  # noqa: ANN401  (whatever a template shows)
    """A page, part by part, as bytes of UTF-8."""
    for part in ENVIRONMENT.get_template(name).generate(values):
        # Half of a surrogate pair has no bytes.
        yield part.encode("utf-8", "replace")
