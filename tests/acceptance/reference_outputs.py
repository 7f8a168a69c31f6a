"""transformers' own greedy outputs at batch 1, with the certainty of each token; kept, for they take long."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Between one pass over a text and one pass a token, float32 logits near 32 were seen to differ by 0.00006. bfloat16 has
# no gap that makes a choice certain: every output is compared with one that transformers made token by token.
CERTAIN_GAP = {"float32": 1e-2}

# Two logits so many steps of their type apart, or less, are a near-tie.
NEAR_TIE_STEPS = 2.0


@dataclass(frozen=True)
class Reference:
    """One output, and for each token the gap between its logit and the runner-up's.

    ``gaps`` is one longer than ``token_ids`` where the end-of-sequence token, which is cut off, ended the output.
    """

    token_ids: list[int]
    gaps: list[float]
    runners_up: list[int]

    def difference(self, output: Sequence[int]) -> Difference | None:
        """Where another output first departs from this one; the size of a step is not known here."""
        if list(output) == self.token_ids:
            return None
        pairs = zip(output, self.token_ids, strict=False)
        position = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(output), len(self.token_ids)))
        if position == len(self.gaps):
            return Difference(position, float("inf"), is_runner_up=False)
        ended = position == len(output)  # an end-of-sequence token is not in the output
        return Difference(position, self.gaps[position], ended or output[position] == self.runners_up[position])


@dataclass(frozen=True)
class Difference:
    """Where two outputs part.

    Attributes:
        position: Of the first token that differs.
        gap: Between the reference's first and second logit there.
        is_runner_up: The second was emitted.
        step: From the first logit to the next number of its type.
        exact_gap: How far apart float32's logits of the two tokens are. Known where the gap is wider than a near-tie,
            and where a third token came.
        error: By how much the type's logits of the two depart from float32's, both together. Known where ``exact_gap``
            is.
    """

    position: int
    gap: float
    is_runner_up: bool
    step: float = math.nan
    exact_gap: float = math.nan
    error: float = math.nan

    @property
    def gap_in_steps(self) -> float:
        """0 for equal logits, 1 for neighbours."""
        return self.gap / self.step


class ReferenceOutputs:
    """References of one model and dtype, computed when first asked for and appended to a file as they come.

    The file is named after all that they depend on; a run that is broken off goes on where it stopped.
    """

    def __init__(self, model: Path, dtype: str, eos_token_ids: Sequence[int], max_tokens: int, folder: Path) -> None:
        self._source = model
        self._dtype = dtype
        self._eos = sorted(eos_token_ids)
        self._max_tokens = max_tokens
        self._model = None
        self._exact = None
        digest = hashlib.sha256()
        for file in (*sorted(model.glob("*.safetensors")), model / "config.json"):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        versions = f"{transformers.__version__}-torch-{torch.__version__}"
        self._file = folder / f"{digest.hexdigest()[:16]}-{dtype}-{max_tokens}-transformers-{versions}.jsonl"
        self._known = dict(self._read())
        self._confirmed: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    @property
    def num_confirmed(self) -> int:
        """Outputs that one pass was enough for."""
        return len(self._confirmed)

    def difference(self, prompt_ids: Sequence[int], output: Sequence[int]) -> Difference | None:
        """Where an output departs from transformers' greedy one; None where it is the same.

        Args:
            prompt_ids: The encoded prompt.
            output: Shorter than ``max_tokens`` if the next token ended it.
        """
        key = (tuple(prompt_ids), tuple(output))
        if key in self._confirmed:
            return None
        if self._dtype in CERTAIN_GAP and self._confirms(prompt_ids, output, CERTAIN_GAP[self._dtype]):
            self._confirmed.add(key)
            return None
        reference = self._of(prompt_ids)
        found = reference.difference(output)
        if found is None:
            return None
        before = [*prompt_ids, *reference.token_ids[: found.position]]
        found = replace(found, step=self._step(before))
        if self._dtype == "float32" or (found.is_runner_up and found.gap_in_steps <= NEAR_TIE_STEPS):
            return found
        sides = (output[found.position :], reference.token_ids[found.position :])
        return self._judged(found, before, [side[:1] or self._eos for side in sides])

    @torch.no_grad()
    def _judged(self, found: Difference, before: Sequence[int], choices: Sequence[Sequence[int]]) -> Difference:
        """What float32 says of two choices; each is one token, or any of those that end an output."""
        if self._exact is None:
            self._exact = AutoModelForCausalLM.from_pretrained(self._source, dtype=torch.float32).eval()
        ids = torch.tensor([before])
        # [vocab_size]
        exact = self._exact(ids, logits_to_keep=1).logits[0, -1]
        rounded = self._loaded()(ids, logits_to_keep=1).logits[0, -1].float()
        tokens = [max(choice, key=lambda token: exact[token].item()) for choice in choices]
        # [2]: of this output's token and of the reference's
        ours, theirs = exact[tokens].tolist()
        return replace(found, exact_gap=abs(ours - theirs), error=(rounded - exact)[tokens].abs().sum().item())

    @torch.no_grad()
    def _step(self, token_ids: Sequence[int]) -> float:
        """How far apart numbers of the type are near the best logit behind these tokens."""
        best = self._loaded()(torch.tensor([token_ids]), logits_to_keep=1).logits.float().max().item()
        return float(2.0 ** math.floor(math.log2(abs(best))) * torch.finfo(getattr(torch, self._dtype)).eps)

    def _of(self, prompt_ids: Sequence[int]) -> Reference:
        """The reference of one encoded prompt."""
        key = hashlib.sha256(json.dumps(list(prompt_ids)).encode()).hexdigest()[:32]
        if key not in self._known:
            reference = self._known[key] = self._generate(prompt_ids)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"prompt": key, **asdict(reference)}) + "\n")
        return self._known[key]

    @torch.no_grad()
    def _confirms(self, prompt_ids: Sequence[int], output: Sequence[int], certain_gap: float) -> bool:
        """Whether transformers' own pass over prompt and output, at batch 1, chooses each of its tokens.

        Token by token by induction this is greedy decoding, in one pass where ``_generate`` takes one a token. The pass
        rounds a little differently, so it says yes only where every choice is clear.
        """
        num_prompt = len(prompt_ids)
        # [1, tokens]
        ids = torch.tensor([[*prompt_ids, *output]])
        # [tokens from the prompt's last on, vocab_size]
        logits = self._loaded()(ids, logits_to_keep=len(output) + 1).logits[0].float()
        best = logits.topk(2, dim=-1)
        chosen, gaps = best.indices[:, 0].tolist(), best.values[:, 0] - best.values[:, 1]
        is_cut = len(output) == self._max_tokens
        ends_well = is_cut or chosen[-1] in self._eos
        asked = len(output) + (0 if is_cut else 1)
        assert len(logits) == ids.shape[1] - num_prompt + 1, "one row for each token, and one after them"
        return ends_well and chosen[: len(output)] == list(output) and bool((gaps[:asked] >= certain_gap).all())

    def _loaded(self) -> torch.nn.Module:
        if self._model is None:
            dtype = getattr(torch, self._dtype)
            self._model = AutoModelForCausalLM.from_pretrained(self._source, dtype=dtype).eval()
        return self._model

    def _read(self) -> Iterator[tuple[str, Reference]]:
        if not self._file.exists():
            return
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:  # broken off while it was written
                continue
            yield fields.pop("prompt"), Reference(**fields)

    @torch.no_grad()
    def _generate(self, prompt_ids: Sequence[int]) -> Reference:
        # [1, prompt_tokens]
        ids = torch.tensor([list(prompt_ids)])
        out = self._loaded().generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=self._max_tokens,
            eos_token_id=self._eos,
            pad_token_id=self._eos[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        new = out.sequences[0, ids.shape[1] :].tolist()
        # each: [new_tokens, 2]
        best = torch.cat(out.logits).float().topk(2, dim=-1)
        assert best.indices[:, 0].tolist() == new or (best.values[:, 0] == best.values[:, 1]).any(), "greedy"
        gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
        # Of an exact tie topk may name either one first.
        runners_up = [
            pair[1] if pair[0] == token else pair[0] for pair, token in zip(best.indices.tolist(), new, strict=True)
        ]
        if new[-1] in self._eos:
            new.pop()
        return Reference(new, gaps, runners_up)
