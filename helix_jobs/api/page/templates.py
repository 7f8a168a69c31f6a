"""The page's templates: every value is escaped, and names are shown as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from helix_jobs._version import __version__
from helix_jobs.api.page.viewer import viewer_of
from helix_jobs.plain_text import printable, shorten
from helix_jobs.wording import counted, data_size, duration, percent, rate

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.requests import Request

_NAME_CHARS: Final = 120


def _name(text: str | None, limit: int = _NAME_CHARS) -> str:
    """A stranger's name on one line: no control and no bidirectional characters, and not longer than a line."""
    return shorten(printable((text or "")[: 4 * limit + 4]), limit)


def _moment(moment: datetime | None) -> str:
    """A time of the server's time zone, to the minute."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M")


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _number(value: float) -> str:
    return f"{value:,}"


ENVIRONMENT: Final = Environment(
    loader=PackageLoader("helix_jobs.api.page", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "name": _name,
    "moment": _moment,
    "iso": _iso,
    "number": _number,
    "counted": counted,
    "data_size": data_size,
    "duration": duration,
    "percent": percent,
    "rate": rate,
}
ENVIRONMENT.globals["version"] = __version__


def render(name: str, **values: Any) -> str:  # noqa: ANN401  (whatever a template shows)
    """A template's text, without the frame of a page: for what moves."""
    return ENVIRONMENT.get_template(name).render(values)


def page(request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401  (as above)
    """A whole page."""
    text = render(name, viewer=viewer_of(request), path=request.scope["path"], **values)
    return HTMLResponse(text, status_code=status)
