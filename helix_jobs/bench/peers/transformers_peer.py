"""transformers' ``generate``: padded batches of prompts sorted by length."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig


def version() -> str:
    """Name and version of the measured software."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def load(job: dict[str, Any]) -> Peer:
    """Load the target."""
    return Peer(job)


class Peer:
    """Left-padded batches; a batch runs until its last output has ended."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch.set_num_threads(job["num_threads"])
        self._model = _read(job["model"], job["dtype"])
        self._batch_size = job["batch_size"]
        self.settings = {"batch_size": self._batch_size, "padding": "left", "dtype": job["dtype"]}

    def prepare(self) -> None:
        """Nothing is kept between rounds."""

    def generate(self, round_: dict[str, Any]) -> list[list[int]]:
        """Token ids of every output."""
        prompts: list[list[int]] = round_["prompts"]
        # Outputs that ignore the end token cannot share a batch with those that do not.
        order = sorted(range(len(prompts)), key=lambda i: (round_["ignore_eos"][i], len(prompts[i])))
        outputs: list[list[int]] = [[] for _ in prompts]
        while order:
            ignore = round_["ignore_eos"][order[0]]
            batch = [i for i in order[: self._batch_size] if round_["ignore_eos"][i] == ignore]
            order = order[len(batch) :]
            stop = None if ignore else round_["stop_token_ids"]
            made = self._generate([prompts[i] for i in batch], max(round_["max_tokens"][i] for i in batch), stop)
            for index, output in zip(batch, made, strict=True):
                outputs[index] = output
        return outputs

    def _generate(self, prompts: list[list[int]], max_tokens: int, stop: list[int] | None) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        # [batch_size, width]
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        # The checkpoint's own generation settings must not be merged in.
        self._model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_tokens, eos_token_id=stop, pad_token_id=stop[0] if stop else 0
        )
        with torch.inference_mode():
            out = self._model.generate(ids, attention_mask=mask)
        made: list[list[int]] = out[:, width:].tolist()
        return made


def _read(folder: str, dtype: str) -> Any:  # noqa: ANN401  (transformers' auto classes are untyped)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
