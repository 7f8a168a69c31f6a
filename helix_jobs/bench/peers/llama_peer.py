"""llama.cpp, through its C interface, over a GGUF file: sequences in slots of one context, decoded side by side."""

from __future__ import annotations

import importlib.metadata
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

# llama.cpp's own default: tokens of one call, so prompts are computed in pieces of at most as many
_TOKENS_OF_A_CALL = 2048
_FLASH_ATTENTION = 1


def version() -> str:
    """Name and version of the measured software."""
    features = llama_cpp.llama_print_system_info().decode().strip()
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')} ({features})"


def load(job: dict[str, Any]) -> Peer:
    """Load the target."""
    return Peer(job)


class Peer:
    """Continuous batching as llama.cpp's server does it: a prompt enters as soon as a slot is free.

    Every call computes one token of each running sequence, and then as much of waiting prompts as has room.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.use_mmap = True
        self._model = llama_cpp.llama_model_load_from_file(str(job["gguf"]).encode(), model)
        if not self._model:
            raise ValueError(f"llama.cpp cannot read {job['gguf']}")
        context = llama_cpp.llama_context_default_params()
        self._slots: int = job["batch_size"]
        context.n_ctx = job["batch_size"] * job["max_model_len"]
        context.n_batch = _TOKENS_OF_A_CALL
        context.n_seq_max = job["batch_size"]
        context.n_threads = context.n_threads_batch = job["num_threads"]
        context.flash_attn_type = _FLASH_ATTENTION
        # One cache for all sequences, so that a long one may use what short ones leave.
        context.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise ValueError("llama.cpp has no memory for its context")
        self._cache = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_TOKENS_OF_A_CALL, 0, 1)
        self.settings = {
            "model": Path(job["gguf"]).name,
            "n_seq_max": job["batch_size"],
            "n_ctx": context.n_ctx,
            "n_batch": _TOKENS_OF_A_CALL,
            "n_threads": job["num_threads"],
            "flash_attn": True,
        }

    def prepare(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(self._cache, True)  # noqa: FBT003  (a C function)

    def generate(self, round_: dict[str, Any]) -> list[list[int]]:
        """Token ids of every output."""
        prompts: list[list[int]] = round_["prompts"]
        limits: list[int] = round_["max_tokens"]
        ends = [set() if ignore else set(round_["stop_token_ids"]) for ignore in round_["ignore_eos"]]
        outputs: list[list[int]] = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        free = list(range(self._slots))
        slot: dict[int, int] = {}  # running request -> its slot
        computed: dict[int, int] = {}  # running request -> tokens of it in the cache
        while waiting or slot:
            while waiting and free:
                request = waiting.popleft()
                slot[request], computed[request] = free.pop(), 0
            self._batch.n_tokens = 0
            rows: list[tuple[int, int]] = []  # (request, row of its next token's logits)
            # Decoding sequences first: their next token never waits for a prompt.
            for request in sorted(slot, key=lambda one: not outputs[one]):
                tokens = outputs[request][-1:] if outputs[request] else prompts[request][computed[request] :]
                taken = tokens[: _TOKENS_OF_A_CALL - self._batch.n_tokens]
                for token in taken:
                    self._add(token, computed[request], slot[request])
                    computed[request] += 1
                if taken and len(taken) == len(tokens):
                    rows.append((request, self._batch.n_tokens - 1))
                    self._batch.logits[self._batch.n_tokens - 1] = 1
            if llama_cpp.llama_decode(self._context, self._batch):
                raise RuntimeError("llama.cpp could not compute a batch")
            for request, row in rows:
                logits = llama_cpp.llama_get_logits_ith(self._context, row)
                token = int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())
                outputs[request].append(token)
                if token in ends[request] or len(outputs[request]) == limits[request]:
                    free.append(slot.pop(request))
                    llama_cpp.llama_memory_seq_rm(self._cache, free[-1], -1, -1)
        return outputs

    def _add(self, token: int, position: int, sequence: int) -> None:
        """Add a token to the batch, without logits."""
        row = self._batch.n_tokens
        self._batch.token[row] = token
        self._batch.pos[row] = position
        self._batch.n_seq_id[row] = 1
        self._batch.seq_id[row][0] = sequence
        self._batch.logits[row] = 0
        self._batch.n_tokens = row + 1
