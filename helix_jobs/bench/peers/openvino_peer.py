"""OpenVINO GenAI's ``LLMPipeline`` over a GGUF file."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

_GIBIBYTE = 1 << 30


def version() -> str:
    """Name and version of the measured software."""
    return f"openvino-genai {importlib.metadata.version('openvino-genai')}"


def load(job: dict[str, Any]) -> Peer:
    """Load the target."""
    return Peer(job)


class Peer:
    """Continuous batching over ``max_num_seqs`` sequences.

    The pipeline takes one limit for all outputs. A round with different limits is refused: under the longest limit its
    time would include tokens that were not asked for.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = job["batch_size"]
        scheduler.cache_size = max(1, -(-int(job["kv_cache_bytes"]) // _GIBIBYTE))
        # The prefix cache cannot be emptied between rounds, and a round must not find prompts of the last round
        # computed.
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": job["num_threads"]}
        self._pipeline = openvino_genai.LLMPipeline(job["gguf"], "CPU", scheduler_config=scheduler, **properties)
        self.settings = {
            "model": Path(job["gguf"]).name,
            "max_num_seqs": scheduler.max_num_seqs,
            "cache_size": scheduler.cache_size,
            "enable_prefix_caching": False,
        }

    def prepare(self) -> None:
        """Nothing is kept between rounds."""

    def generate(self, round_: dict[str, Any]) -> list[list[int]]:
        """Token ids of every output."""
        if len(set(zip(round_["max_tokens"], round_["ignore_eos"], strict=True))) > 1:
            raise ValueError(
                "OpenVINO's pipeline takes one limit for all; give every prompt the same max_tokens, and room for it "
                "in the model's context"
            )
        prompts: list[list[int]] = round_["prompts"]
        width = max(len(prompt) for prompt in prompts)
        # [num_prompts, width]; the padding is dropped again by the pipeline
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        config = openvino_genai.GenerationConfig()
        config.do_sample = False
        config.max_new_tokens = round_["max_tokens"][0]
        config.ignore_eos = round_["ignore_eos"][0]
        if not config.ignore_eos:
            config.stop_token_ids = set(round_["stop_token_ids"])
            config.eos_token_id = round_["stop_token_ids"][0]
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
        return [list(tokens) for tokens in self._pipeline.generate(inputs, config).tokens]
