"""UnfinishedText: an unfinished answer of a server that answers in text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.engine.partial_output import PartialText
from helix_jobs.engine.text.partial_text import without_begun

if TYPE_CHECKING:
    from helix_jobs.engine.request import EncodedRequest


@dataclass(frozen=True, slots=True)
class UnfinishedText:
    """The texts of an answer so far (satisfies ``PartialOutput``).

    Trade-off: where the answer may think or call functions nothing is shown before its end, as its parts are told by
    tokens.

    Attributes:
        request: The request; of several choices, the choice's own.
        texts: What has come, in its order.
    """

    request: EncodedRequest
    texts: tuple[str, ...]

    def read(self) -> PartialText:
        """See ``PartialOutput``."""
        request = self.request
        if request.reasoning is not None or request.tools is not None:
            return PartialText()
        text, stop = "".join(self.texts), request.sampling_params.stop
        places = [place for one in stop if (place := text.find(one)) >= 0]
        return PartialText(without_begun(text[: min(places)] if places else text, stop))
