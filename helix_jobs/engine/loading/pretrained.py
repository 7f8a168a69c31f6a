"""How ``from_pretrained`` is called: no remote code, no network, no progress bars.

This module handles the differences in loading between transformers 4.57 (which DirectML needs) and 5.
"""

from __future__ import annotations

import contextlib
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
def pretrained_arguments(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the folder and keyword arguments for ``from_pretrained``; transformers is quiet inside the context."""
    with quiet_transformers():
        yield str(folder), {"trust_remote_code": False, "local_files_only": True}


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
