"""Which drafters there are. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.speculation.drafters.lookup import LookupDrafter
from helix_jobs.engine.speculation.drafters.protocol import Drafters
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.speculation.drafters.protocol import Drafter

# Those that find their drafts, by the name that settings give them. What computes drafts is a model.
FINDING: Final[dict[str, Callable[[], Drafter]]] = {LookupDrafter.name: LookupDrafter}


def build_drafters(names: Sequence[str], model: ModelRunner | None, vocab_size: int) -> Drafters:
    """The drafters of an engine.

    Args:
        names: Those that find drafts, the preferred one first.
        model: The draft model, or None.
        vocab_size: The target's.

    Raises:
        ConfigurationError: No drafter has that name.
    """
    for name in names:
        if name not in FINDING:
            raise ConfigurationError(f"there is no drafter {name!r}; there is {', '.join(FINDING)}, or a draft model")
    finding = tuple(FINDING[name]() for name in names)
    if model is None:
        return Drafters(finding)
    # Names are read where torch is not.
    from helix_jobs.engine.speculation.drafters.draft_model import DraftModelDrafter

    return Drafters(finding, DraftModelDrafter(model, vocab_size))
