"""The registry of drafters. To add a drafter, add a file beside this one and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.speculation.drafters.lookup import LookupDrafter
from helix_jobs.engine.speculation.drafters.protocol import Drafters
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.engine.model.runner import ModelRunner
    from helix_jobs.engine.speculation.drafters.protocol import FindingDrafter

# Drafters that find their drafts, by their name in settings. A model is the only drafter that computes them.
FINDING: Final[dict[str, Callable[[], FindingDrafter]]] = {LookupDrafter.name: LookupDrafter}


def build_drafters(names: Sequence[str], model: ModelRunner | None, vocab_size: int) -> Drafters:
    """The drafters of an engine. What grammars force is drafted without one, see ``force``.

    Args:
        names: Names of the drafters that find drafts, the preferred one first.
        model: The draft model, or None.
        vocab_size: Vocabulary size of the target.

    Raises:
        ConfigurationError: No drafter has one of the names.
    """
    for name in names:
        if name not in FINDING:
            raise ConfigurationError(f"there is no drafter {name!r}; there is {', '.join(FINDING)}, or a draft model")
    finding = tuple(FINDING[name]() for name in names)
    if model is None:
        return Drafters(finding)
    # Imported late: the names above are also read without torch.
    from helix_jobs.engine.speculation.drafters.draft_model import DraftModelDrafter

    return Drafters(finding, DraftModelDrafter(model, vocab_size))
