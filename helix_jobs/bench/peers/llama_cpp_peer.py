"""llama.cpp through llama-cpp-python's low-level interface: parallel sequences in one context.

``Llama.generate`` knows one sequence; this loop does what llama.cpp's own server does: every step decodes one token of
each running sequence and, in what is left of the batch, chunks of prompts.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_BATCH_TOKENS = 2048


def version() -> str:
    """What is measured."""
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


def load(job: dict[str, Any]) -> Peer:
    """Load the target."""
    return Peer(job)


class _Sequence:
    """One prompt and its output, in slot ``slot`` of the context."""

    def __init__(self, index: int, slot: int, prompt: list[int]) -> None:
        self.index = index
        self.slot = slot
        self.pending = list(prompt)
        self.position = 0
        self.output: list[int] = []
        self.row: int | None = None  # of the batch, whose logits give its next token


class Peer:
    """Greedy continuous batching over ``batch_size`` sequences."""

    def __init__(self, job: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(job["gguf"].encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot read {job['gguf']}")
        self._num_slots = job["batch_size"]
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._num_slots * job["max_model_len"]
        params.n_batch = max(_BATCH_TOKENS, self._num_slots)
        params.n_seq_max = self._num_slots
        params.n_threads = params.n_threads_batch = job["num_threads"]
        params.kv_unified = True
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context of this size")
        self._vocab_size = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(self._model))
        self._batch_tokens = int(params.n_batch)
        self._batch = llama_cpp.llama_batch_init(self._batch_tokens, 0, 1)
        self.settings = {
            "model": Path(job["gguf"]).name,
            "n_seq_max": self._num_slots,
            "n_ctx": int(params.n_ctx),
            "n_batch": self._batch_tokens,
            "kv_unified": True,
        }

    def prepare(self) -> None:
        """A round begins with an empty cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)  # noqa: FBT003  (a C function)

    def generate(self, round_: dict[str, Any]) -> list[list[int]]:
        """Token ids of every output."""
        waiting = deque(enumerate(round_["prompts"]))
        outputs: list[list[int]] = [[] for _ in waiting]
        stop = frozenset(round_["stop_token_ids"])
        running: list[_Sequence] = []
        free = deque(range(self._num_slots))
        while waiting or running:
            while waiting and free:
                index, prompt = waiting.popleft()
                running.append(_Sequence(index, free.popleft(), prompt))
            self._decode(running)
            for sequence in list(running):
                if sequence.row is None:
                    continue
                token = self._best(sequence.row)
                ends = token in stop and not round_["ignore_eos"][sequence.index]
                if not ends:
                    sequence.output.append(token)
                    sequence.pending = [token]
                if ends or len(sequence.output) >= round_["max_tokens"][sequence.index]:
                    outputs[sequence.index] = sequence.output
                    running.remove(sequence)
                    free.append(sequence.slot)
                    memory = llama_cpp.llama_get_memory(self._context)
                    llama_cpp.llama_memory_seq_rm(memory, sequence.slot, -1, -1)
        return outputs

    def _decode(self, running: list[_Sequence]) -> None:
        """One pass over what is pending: last tokens first, then prompts as far as the batch goes."""
        batch = self._batch
        row = 0
        for sequence in sorted(running, key=lambda one: not one.output):
            chunk = sequence.pending[: self._batch_tokens - row]
            sequence.pending = sequence.pending[len(chunk) :]
            sequence.row = None
            for token in chunk:
                batch.token[row] = token
                batch.pos[row] = sequence.position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence.slot
                batch.logits[row] = 0
                sequence.position += 1
                row += 1
            if chunk and not sequence.pending:
                batch.logits[row - 1] = 1
                sequence.row = row - 1
        batch.n_tokens = row
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with status {status}")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())
