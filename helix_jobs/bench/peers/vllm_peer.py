"""vLLM's offline ``LLM``, compiled as it comes, on the CPU."""

from __future__ import annotations

import os
from typing import Any

_GIBIBYTE = 1 << 30


def version() -> str:
    """What is measured."""
    import torch
    import vllm

    return f"vllm {vllm.__version__}, torch {torch.__version__}"


def load(job: dict[str, Any]) -> Peer:
    """Load and compile the target."""
    # Read when vllm is imported.
    space = -(-int(job["kv_cache_bytes"]) // _GIBIBYTE)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, space)))
    return Peer(job)


class Peer:
    """Continuous batching over ``max_num_seqs`` sequences."""

    def __init__(self, job: dict[str, Any]) -> None:
        from vllm import LLM

        arguments = {
            "dtype": job["dtype"],
            "max_num_seqs": job["batch_size"],
            "max_model_len": job["max_model_len"],
        }
        self._llm = LLM(model=job["model"], disable_log_stats=True, **arguments)
        self.settings = {**arguments, "VLLM_CPU_KVCACHE_SPACE": os.environ["VLLM_CPU_KVCACHE_SPACE"]}

    def prepare(self) -> None:
        """A round must not find the last one's prompts computed."""
        self._llm.reset_prefix_cache()

    def generate(self, round_: dict[str, Any]) -> list[list[int]]:
        """Token ids of every output."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=limit,
                ignore_eos=ignore,
                stop_token_ids=[] if ignore else round_["stop_token_ids"],
                detokenize=False,
            )
            for limit, ignore in zip(round_["max_tokens"], round_["ignore_eos"], strict=True)
        ]
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in round_["prompts"]]
        return [list(done.outputs[0].token_ids) for done in self._llm.generate(prompts, params, use_tqdm=False)]
