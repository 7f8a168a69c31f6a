"""AwaitedDrafts: drafts that stay on the device until the one download of their step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.speculation.drafters.protocol import Draft

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from helix_jobs.engine.model.runner import ModelRunner, Pass, PlannedPass
    from helix_jobs.engine.speculation.drafters.draft_model import PlannedDrafts
    from helix_jobs.engine.speculation.turn import Turn


class AwaitedDrafts:
    """The draft model's part of a step that waits for the device once.

    Depths are known before drafting, so the passes of draft model and target are planned together and copied to the
    device at once. The target reads the draft tokens on the device; the host receives them with the scores.

    Trade-off: the host processes nothing in between, so every sequence, sampled and shaped ones included, drafts the
    draft model's most likely token with certainty. Outputs still have exactly the target's distribution, but such a
    token is accepted only with its target probability, less often than one drawn from a similar draft distribution. A
    wait for each drafted position would cost more than that gains: it may take as long as a step.

    Args:
        runner: The draft model.
        planned: Its passes.
        vocab_size: The target's vocabulary size, to which draft logits are cut.
    """

    def __init__(self, runner: ModelRunner, planned: PlannedDrafts, vocab_size: int) -> None:
        self._runner = runner
        self._planned = planned
        self._vocab_size = vocab_size

    @property
    def passes(self) -> SequenceOf[PlannedPass]:
        """The passes to copy to the device."""
        return self._planned.passes

    @property
    def sources(self) -> dict[Turn, list[int]]:
        """For each turn that drafts, the indices of its tokens among those that ``run`` returns."""
        sources: dict[Turn, list[int]] = {one.turn: [] for one in self._planned.drafting}
        first = 0
        for planned, batch in zip(self._planned.passes, self._planned.batches, strict=False):
            for place, one in enumerate(batch):
                sources[one.turn].append(first + place)
            assert planned.logit_rows is not None, "a pass in which sequences draft yields their logits"
            first += len(planned.logit_rows)
        return sources

    def run(self, passes: SequenceOf[Pass]) -> torch.Tensor | None:
        """Start all passes.

        Args:
            passes: The planned passes, on the device.

        Returns:
            Token ids on the device, pass after pass, padding included; None when no turn drafts and the draft model
            only keeps up with prompts.
        """
        found: list[torch.Tensor] = []
        for one in passes:
            logits = self._runner.run(one, found[-1] if found else None)
            if logits is not None:
                # Cut ids that the target's vocabulary lacks; ids that the draft's lacks can never be chosen.
                found.append(logits.narrow(1, 0, min(self._vocab_size, logits.shape[1])).argmax(dim=-1))
        return torch.cat(found) if found else None

    def receive(self, token_ids: SequenceOf[int]) -> None:
        """Give each turn its draft, and note what the draft's cache holds now.

        Called once the step's scores have arrived: a step that fails earlier changes nothing.

        Args:
            token_ids: The result of ``run``, on the host.
        """
        self._planned.note_filled()
        for turn, sources in self.sources.items():
            # Only the target reads the last draft token.
            turn.sequence.num_draft_computed = len(turn.sequence) + len(turn.forced) + turn.depth - 1
            turn.draft = Draft(tuple(token_ids[source] for source in sources))
