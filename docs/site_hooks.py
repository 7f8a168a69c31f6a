r"""What MkDocs does otherwise than GitHub, made alike, so that one text serves both.

A page may link to a file of the repository (``../worker.py``): the site gets a copy of it. In a table ``\|`` is a bar,
inside code too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

_SOURCE_LINK = re.compile(r"\]\(\.\./([^)#]+)\)")
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig, **_: object) -> Files:
    """Add each file that a page links to outside docs. One that is not there fails the strict build as a dead link."""
    root = Path(config.docs_dir).parent
    linked = {name for page in files.documentation_pages() for name in _SOURCE_LINK.findall(page.content_string)}
    for name in sorted(linked):
        if (root / name).is_file():
            files.append(File.generated(config, _copy(name), abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links out of docs lead to the site's copies."""
    return _SOURCE_LINK.sub(lambda match: f"]({_copy(match[1])})", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Show an escaped bar in a table's cell as a bar."""
    return _CELL.sub(lambda match: match[0].replace(r"\|", "|"), html)


def _copy(name: str) -> str:
    """The place of a copy. As plain text a browser shows it instead of storing it."""
    return f"source/{name}.txt"
