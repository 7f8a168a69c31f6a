"""YieldWhen: by which signs a worker sees that somebody else uses its machine or device.

``load>50%, memory>20%, process:blender``: any of them is enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from helix_jobs.errors import ConfigurationError

_SHARE: Final = re.compile(r"(?P<what>load|memory)\s*>\s*(?P<percent>\d{1,2})\s*%")
_PROCESS: Final = re.compile(r"process\s*:\s*(?P<name>\S(?:.{0,98}\S)?)")


@dataclass(frozen=True, slots=True)
class YieldWhen:
    """The signs. Shares are of one.

    Attributes:
        load: Others use more than this share of the machine's processors.
        memory: Others hold more than this share of the device's memory.
        processes: A process of one of these names runs, in letters of either case.
    """

    load: float | None = None
    memory: float | None = None
    processes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> YieldWhen:
        """Read signs as the module's docstring shows them.

        Raises:
            ConfigurationError: The text is not valid; the message names the part that is not, and what is.
        """
        shares: dict[str, float] = {}
        processes: list[str] = []
        for part in map(str.strip, text.split(",")):
            if (found := _PROCESS.fullmatch(part)) is not None:
                processes.append(found["name"])
            elif (found := _SHARE.fullmatch(part)) is None or not int(found["percent"]) or found["what"] in shares:
                _refuse(part)
            else:
                shares[found["what"]] = int(found["percent"]) / 100
        return cls(load=shares.get("load"), memory=shares.get("memory"), processes=tuple(processes))


def checked_yield_when(text: str) -> str:
    """The text itself, if it is valid.

    Raises:
        ConfigurationError: It is not.
    """
    YieldWhen.parse(text)
    return text


def _refuse(part: str) -> NoReturn:
    raise ConfigurationError(
        f"HELIX_YIELD_WHEN has {part!r:.120}; give load>50%, memory>20% (1 to 99, each once), process:NAME, or several "
        "with commas between them"
    )
