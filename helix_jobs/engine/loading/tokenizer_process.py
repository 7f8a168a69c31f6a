"""The process in which a model's ``tokenizer.json`` is read for the first time, because the file is untrusted.

``try_tokenizer`` runs ``python -m helix_jobs.engine.loading.tokenizer_process``. It reads one JSON object from standard
input and answers with one. Reading alone may panic, abort the process, or take all memory, because it runs each added
token through the normalizer. The process imports neither torch nor transformers, so that it starts in a tenth of a
second.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokenizers import AddedToken, Tokenizer

from helix_jobs.engine.text.bounded_child import begin, send
from helix_jobs.engine.text.library_panics import LibraryPanicError, panics_as_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKENIZER: Final = "tokenizer.json"
# Files in which transformers finds names of further tokens beside those of tokenizer.json.
_TOKEN_FILES: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MOST_WORDS: Final = 300


def fault_of(folder: Path) -> str:
    """What is wrong with a folder's tokenizer, as in "its tokenizer ..."; empty for nothing.

    Only faults that transformers would not survive count. Files that the library refuses are left to transformers' own
    errors.
    """
    documents = [_document(folder / name) for name in _TOKEN_FILES]
    chosen = documents[0].get("fast_tokenizer_files") or [_TOKENIZER]
    if chosen != [_TOKENIZER]:  # transformers may read another file in its place
        return (
            f"has a tokenizer_config.json that names other files than {_TOKENIZER} (fast_tokenizer_files); remove that "
            "entry"
        )
    if not (folder / _TOKENIZER).is_file():
        return ""
    try:
        with panics_as_errors():
            _read(folder / _TOKENIZER, [text for document in documents for text in _texts(document)])
    except LibraryPanicError as error:
        words = " ".join(str(error).split())
        return f"makes the tokenizers library panic ({words:.{_MOST_WORDS}}); fetch the model again"
    except MemoryError:
        return "needs too much memory to be read; fetch the model again"
    except Exception:  # noqa: BLE001  (transformers meets the same error and says it)
        return ""
    return ""


def _read(path: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    # Releases of transformers differ in the tokens they add and how. Normalising is the most they do to a token.
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in texts])


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(document: dict[str, Any]) -> Iterator[str]:
    """Every text of a document, keys included, that may be a token; a chat template is not."""
    stack: list[object] = [{key: value for key, value in document.items() if key != "chat_template"}]
    while stack:
        found = stack.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            stack.extend(found)
        elif isinstance(found, dict):
            stack.extend((*found, *found.values()))


def main() -> None:
    """Read one request and answer it."""
    setup, _, answers = begin()
    send(answers, {"fault": fault_of(Path(setup["folder"]))})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
