"""Options of ``helix bench``: lists, peers and their interpreters."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.bench.peer import PEERS
from helix_jobs.bounds import MAX_BATCH_SIZE
from helix_jobs.cli.group import echo_json
from helix_jobs.output_file import written_whole

if TYPE_CHECKING:
    from collections.abc import Callable

STANDARD_OUTPUT: Final = "-"


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--json [FILE]``, as ``json_file``."""
    option = click.option(
        "--json",
        "json_file",
        is_flag=False,
        flag_value=STANDARD_OUTPUT,
        metavar="[FILE]",
        help="Store everything as JSON in a file; without a file, print it on standard output and no tables.",
    )
    return option(function)


def check_json_file(json_file: str | None) -> None:
    """Refuse a JSON file that cannot be written, before anything is measured.

    Raises:
        click.BadParameter: The file's directory does not exist.
    """
    if json_file not in (None, STANDARD_OUTPUT) and not Path(json_file).absolute().parent.is_dir():
        raise click.BadParameter(f"the directory of {json_file!r} does not exist.", param_hint="--json")


def write_json(report: dict[str, Any], json_file: str | None) -> None:
    """Write a report to the file of ``--json``; nothing without that option."""
    if json_file == STANDARD_OUTPUT:
        echo_json(report)
    elif json_file is not None:
        with written_whole(Path(json_file)) as stream:
            stream.write(f"{json.dumps(report, indent=1)}\n".encode())


def comma_separated(parse: Callable[[str], object]) -> Callable[..., tuple[Any, ...] | None]:
    """A click callback for ``a,b,c``: each part read by ``parse``, kept once, in the order given."""

    def convert(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        try:
            return tuple(dict.fromkeys(parse(part.strip()) for part in value.split(",")))
        except ValueError as error:
            raise click.BadParameter(f"{error}.") from error

    return convert


def read_batch_size(text: str) -> int:
    """A number of batch slots.

    Raises:
        ValueError: The text is not a number from 1 to 4096.
    """
    if not (text.isdecimal() and 1 <= int(text) <= MAX_BATCH_SIZE):
        raise ValueError(f"{text!r} is no batch size; give numbers from 1 to {MAX_BATCH_SIZE}, such as 1,8,32")
    return int(text)


def read_peer(text: str) -> str:
    """The name of a peer.

    Raises:
        ValueError: There is no peer of that name.
    """
    if text not in PEERS:
        raise ValueError(f"{text!r} is no peer; give one or more of {', '.join(PEERS)}")
    return text


def read_draft(text: str) -> str:
    """A draft, in the form that the engine reads.

    Raises:
        ValueError: The text is empty.
    """
    if not text:
        raise ValueError("a draft is missing between two commas")
    return text


def peer_interpreters(peers: tuple[str, ...], given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each peer with its interpreter: ``NAME=PATH``, else a bare ``PATH``, else this one.

    Raises:
        click.BadParameter: A name is not a peer of this call, or a path is not a program.
    """
    named: dict[str, str] = {}
    default = sys.executable
    for text in given:
        name, separator, path = text.partition("=")
        if not separator:
            name, path = "", text
        elif name not in peers:
            hint = "add it to --against" if name in PEERS else f"the peers are {', '.join(PEERS)}"
            raise click.BadParameter(
                f"{name!r} is not among the peers of this call; {hint}.", param_hint="--peer-python"
            )
        # Do not resolve links: a virtual environment's interpreter is a link, and finds its environment by its path.
        found = shutil.which(os.path.expanduser(path))  # noqa: PTH111  (Path refuses an unknown ~user)
        if found is None:
            raise click.BadParameter(f"{path!r} is no program; give a Python interpreter.", param_hint="--peer-python")
        if name:
            named[name] = found
        else:
            default = found
    return tuple((peer, named.get(peer, default)) for peer in peers)
