"""KeptFile: a finding about a device or a model, kept under HELIX_HOME for the next start."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import ConfigurationError
from helix_jobs.files import make_private_directory, note_use, read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)


class KeptFile:
    """A JSON file, one for each identity.

    Args:
        folder: Holds the files.
        kind: Prefix of their names.
        identity: The conditions under which the content is valid: device, driver, models, releases.
    """

    def __init__(self, folder: Path, kind: str, identity: Mapping[str, str]) -> None:
        digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:16]
        self._path = folder / f"{kind}-{digest}.json"

    def read(self) -> Any:  # noqa: ANN401  (JSON is what somebody wrote)
        """The content; None if there is none or it cannot be read. The caller checks that it makes sense."""
        try:
            content = json.loads(read_private(self._path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, ConfigurationError) as error:
            logger.warning("ignoring the damaged file %s (%s); it is made again", self._path, error)
            return None
        note_use(self._path)
        return content

    def write(self, content: object) -> None:
        """Keep the content. If writing fails, the next start finds it out again."""
        try:
            make_private_directory(self._path.parent)
            write_private(self._path, json.dumps(content).encode())
        except (OSError, ConfigurationError) as error:
            logger.warning("the file %s cannot be written: %s", self._path, error)
