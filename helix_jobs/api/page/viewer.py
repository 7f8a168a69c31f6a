"""Viewer: who looks at the page, and whose batches they see.

Trade-off: batches of the command line have no owner. Whoever is alone with a server sees them: everybody where no keys
are set, and the one key where one is set. Where several keys are set they are on nobody's page, as they would else be
on everybody's; their submitter reads them with the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

    from helix_jobs.api.context import Context


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks.

    Attributes:
        owner: The owner of their key.
        sees_unowned: Whether they see what the command line submitted.
        can_sign_out: Whether they have signed in.
    """

    owner: str
    sees_unowned: bool
    can_sign_out: bool

    def sees(self, owner: str | None) -> bool:
        """Whether they see a batch of this owner; None owns what the command line submitted."""
        return self.sees_unowned if owner is None else owner == self.owner


def viewer_of(request: Request) -> Viewer:
    """Who asks; the guard has let the request in."""
    context: Context = request.app.state.context
    access = context.access
    return Viewer(request.state.owner, sees_unowned=len(access.digests) <= 1, can_sign_out=not access.is_open)
