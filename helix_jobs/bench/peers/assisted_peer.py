"""transformers' assisted generation: one prompt at a time, a draft model, a fixed depth."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

_DEPTH = 4


def version() -> str:
    """Name and version of the measured software."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def load(job: dict[str, Any]) -> Peer:
    """Load target and draft."""
    return Peer(job)


class Peer:
    """Batch size 1, the only one that assisted generation supports."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["num_threads"])
        self._model = _read(job["model"], job["dtype"])
        self._draft = _read(job["draft"], job["dtype"])
        self._draft.generation_config.num_assistant_tokens = _DEPTH
        self._draft.generation_config.num_assistant_tokens_schedule = "constant"
        # By default an unsure draft stops early; zero keeps the depth constant.
        self._draft.generation_config.assistant_confidence_threshold = 0.0
        self.settings = {"batch_size": 1, "depth": _DEPTH, "dtype": job["dtype"]}

    def prepare(self) -> None:
        """Nothing is kept between rounds."""

    def generate(self, round_: dict[str, Any]) -> list[list[int]]:
        """Token ids of every output."""
        jobs = zip(round_["prompts"], round_["max_tokens"], round_["ignore_eos"], strict=True)
        return [
            self._one(prompt, limit, None if ignore else round_["stop_token_ids"]) for prompt, limit, ignore in jobs
        ]

    def _one(self, prompt: list[int], max_tokens: int, stop: list[int] | None) -> list[int]:
        self._model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_tokens, eos_token_id=stop, pad_token_id=stop[0] if stop else 0
        )
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = self._model.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=self._draft)
        made: list[int] = out[0, len(prompt) :].tolist()
        return made


def _read(folder: str, dtype: str) -> Any:  # noqa: ANN401  (transformers' auto classes are untyped)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
