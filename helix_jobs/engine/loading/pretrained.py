"""How ``from_pretrained`` is called: no remote code, no network, no progress bars, and GGUF files by themselves.

This module handles the differences in loading between transformers 4.57 (which DirectML needs) and 5.
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
        stack.enter_context(quiet_transformers())
        if gguf_file is None:
            yield str(folder), arguments
            return
        # Use an empty folder: files of other models beside the .gguf file would be mixed in.
        empty = stack.enter_context(tempfile.TemporaryDirectory(prefix="helix-gguf-"))
        # The GGUF reader draws its bar on stderr whatever the logging settings say.
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield empty, {**arguments, "gguf_file": str(folder.resolve() / gguf_file)}


def read_tokenizer(folder: str, arguments: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Read a directory's tokenizer, with the arguments of ``pretrained_arguments``.

    Raises:
        OSError, ValueError: As transformers raises them.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **arguments)
    except ValueError:
        # transformers 5 writes a class name that 4 does not know; the tokenizer.json beside it is complete by itself.
        if not (Path(folder) / "tokenizer.json").is_file():
            raise
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **arguments)
    return tokenizer


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers: our progress lines replace its bars, and our errors its hints to programmers."""
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
