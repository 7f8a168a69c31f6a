"""How ``from_pretrained`` is called: never remote code, never the network, no bars in a log, GGUF files alone.

Here stand the differences between transformers 4.57 (which DirectML needs) and 5 in loading.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

TRANSFORMERS_MAJOR: Final = int(transformers.__version__.split(".")[0])


@contextlib.contextmanager
def pretrained_arguments(folder: Path, gguf_file: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the folder and keyword arguments for ``from_pretrained``; transformers is quiet inside the context."""
    arguments: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet_transformers())
        if gguf_file is None:
            yield str(folder), arguments
            return
        # An empty folder: files of other models that lie beside the .gguf would be mixed into it.
        empty = stack.enter_context(tempfile.TemporaryDirectory(prefix="helix-gguf-"))
        # The GGUF reader draws its bar on stderr whatever the logging settings say.
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield empty, {**arguments, "gguf_file": str(folder.resolve() / gguf_file)}


def weight_arguments(gguf_file: str | None) -> dict[str, Any]:
    """Return what reading the weights takes beside these arguments."""
    if gguf_file is None:
        return {"use_safetensors": True}
    if hasattr(transformers, "GgufConfig"):
        # transformers 5 may otherwise leave the weights packed, in layers of its own.
        return {"quantization_config": transformers.GgufConfig(dequantize=True)}
    return {}


def read_tokenizer(folder: str, arguments: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Read the tokenizer, with the arguments of ``pretrained_arguments``.

    Raises:
        OSError, ValueError: As transformers raises them.
    """
    gguf_file = arguments.get("gguf_file")
    tokenizer: PreTrainedTokenizerBase
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
    except ValueError:
        # transformers 5 writes a class name that 4 does not know; the tokenizer.json beside it is complete by itself.
        if gguf_file is not None or not (Path(folder) / "tokenizer.json").is_file():
            raise
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **arguments)
    if gguf_file is not None and TRANSFORMERS_MAJOR < 5:  # noqa: PLR2004  (a version)
        return _repair_gguf_tokenizer(tokenizer, Path(gguf_file))
    return tokenizer


def _repair_gguf_tokenizer(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> PreTrainedTokenizerBase:
    """Undo what transformers 4 does to a byte-level vocabulary out of a GGUF file.

    It makes a Llama tokenizer of it: puts the first token before every prompt, takes the wrong end token and removes
    spaces on decoding. The vocabulary and merges it read are right; the special tokens are in the file.
    """
    from gguf import GGUFReader
    from tokenizers import processors

    reader = GGUFReader(str(gguf))

    def value(name: str) -> Any:  # noqa: ANN401  (GGUF metadata is what the file says)
        field = reader.get_field(f"tokenizer.{name}")
        return None if field is None else field.contents()

    if value("ggml.model") != "gpt2":
        return tokenizer
    backend = tokenizer.backend_tokenizer
    if not value("ggml.add_bos_token"):
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {token: value(f"ggml.{name}_token_id") for token, name in names.items()}
    special = {token: backend.id_to_token(int(i)) for token, i in ids.items() if i is not None}
    repaired = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    repaired.chat_template = value("chat_template")
    return repaired


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Our own progress lines stand in for transformers' bars, our own errors for its hints to programmers."""
    shown = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
