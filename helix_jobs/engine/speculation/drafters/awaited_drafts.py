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

    How deep each sequence drafts is known before it does, so the draft model's passes and the target's are planned
    together and brought to the device in one copy. The target reads the draft tokens where they were found; the host
    learns them with the verdicts.

    Trade-off: nothing is processed on the host in between, so sampled sequences and those whose logits are shaped draft
    the token that the draft model finds most likely, with certainty. Verification emits exactly the target's
    distribution whatever is proposed, but accepts such a token with the probability that the target gives it, which is
    less often than one drawn from a draft distribution like the target's. A wait for each drafted position would cost
    more than that gains: it may take as long as a step.

    Args:
        runner: The draft model.
        planned: Its passes.
        vocab_size: The target's, to which draft logits are cut.
    """

    def __init__(self, runner: ModelRunner, planned: PlannedDrafts, vocab_size: int) -> None:
        self._runner = runner
        self._planned = planned
        self._vocab_size = vocab_size

    @property
    def passes(self) -> SequenceOf[PlannedPass]:
        """What is to be brought to the device."""
        return self._planned.passes

    @property
    def sources(self) -> dict[Turn, list[int]]:
        """For each turn that drafts, which of the tokens that ``run`` leaves are its own."""
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
            passes: ``passes`` on the device.

        Returns:
            Token ids on the device, those of each pass behind one another and padding among them; None when nobody
            drafts and the draft model only keeps up with prompts.
        """
        found: list[torch.Tensor] = []
        for one in passes:
            logits = self._runner.run(one, found[-1] if found else None)
            if logits is not None:
                # Rows that the target's vocabulary lacks are cut; those that the draft's lacks can never be chosen.
                found.append(logits.narrow(1, 0, min(self._vocab_size, logits.shape[1])).argmax(dim=-1))
        return torch.cat(found) if found else None

    def receive(self, token_ids: SequenceOf[int]) -> None:
        """Give each turn its draft, and note what the draft's cache holds now.

        Only what came down was computed for certain: a step that failed before has changed nothing.

        Args:
            token_ids: What ``run`` left on the device.
        """
        for sequence, end in self._planned.ends:
            sequence.num_draft_computed = sequence.table.mark_draft_filled(end)
        for turn, sources in self.sources.items():
            # The token drafted last is read by the target alone.
            turn.sequence.num_draft_computed = len(turn.sequence) + turn.depth - 1
            turn.draft = Draft(tuple(token_ids[source] for source in sources))
