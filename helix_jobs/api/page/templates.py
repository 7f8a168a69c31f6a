"""The page's templates: every value is escaped, and names are shown as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jinja2 import ChoiceLoader, PackageLoader, PrefixLoader
from starlette.responses import HTMLResponse

from helix_jobs.api.page.viewer import viewer_of
from helix_jobs.reports import html
from helix_jobs.reports.outcome_words import FINISHES

if TYPE_CHECKING:
    from starlette.requests import Request

# The page's own, and those of reports, with which it shares the charts.
_LOADER: Final = ChoiceLoader(
    [PackageLoader("helix_jobs.api.page", "templates"), PrefixLoader({"reports": html.TEMPLATES})]
)
ENVIRONMENT: Final = html.make_environment(_LOADER, "%Y-%m-%d %H:%M")
ENVIRONMENT.globals["finishes"] = FINISHES
ENVIRONMENT.filters["iso"] = lambda moment: moment.isoformat(timespec="seconds")


def render(name: str, **values: Any) -> str:  # noqa: ANN401  (whatever a template shows)
    """A template's text, without the frame of a page: for what moves."""
    return ENVIRONMENT.get_template(name).render(values)


def page(request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:  # noqa: ANN401  (as above)
    """A whole page."""
    text = render(name, viewer=viewer_of(request), path=request.scope["path"], **values)
    return HTMLResponse(text, status_code=status)
