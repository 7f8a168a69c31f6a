"""vLLM's offline ``LLM``, compiled as it comes, on the CPU."""

from __future__ import annotations

import os
from typing import Any

_GIBIBYTE = 1 << 30
_VARIABLES = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND")


def version() -> str:
    """Name and version of the measured software."""
    import torch
    import vllm

    return f"vllm {vllm.__version__}, torch {torch.__version__}"


def load(job: dict[str, Any]) -> Peer:
    """Load and compile the target."""
    # vLLM reads this when it is imported.
    space = -(-int(job["kv_cache_bytes"]) // _GIBIBYTE)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, space)))
    # vLLM binds a thread to every core, whatever OMP_NUM_THREADS says. If it may use all cores, it is left to choose.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
    if job["num_threads"] < len(cores):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores[: job["num_threads"]])))
    else:
        os.environ.pop("OMP_NUM_THREADS", None)
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
        self.settings = {**arguments, **{name: os.environ.get(name) for name in _VARIABLES}}

    def prepare(self) -> None:
        """Reset the cache: a round must not find prompts of the last round computed."""
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
