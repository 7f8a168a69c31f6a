"""A prompt encoder's processes, for tests that stop, kill or withhold one. Only this file names its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import queue
    import subprocess

    from helix_jobs.engine.text.bounded_process import BoundedProcess, ProcessLimits
    from helix_jobs.engine.text.prompt_encoder import PromptEncoder


@dataclass(frozen=True, slots=True)
class OpenedEncoder:
    """The parts of one encoder, as they are at the moment of asking."""

    encoder: PromptEncoder

    @property
    def processes(self) -> set[BoundedProcess]:
        """All of them, at work or free."""
        return self.encoder._processes

    @property
    def free(self) -> queue.LifoQueue[BoundedProcess]:
        """Those that wait for a prompt."""
        return self.encoder._free

    def take(self) -> BoundedProcess:
        """A process, as for a prompt."""
        return self.encoder._take()


def opened(encoder: PromptEncoder) -> OpenedEncoder:
    """The parts of ``encoder``."""
    return OpenedEncoder(encoder)


def system_process(process: BoundedProcess) -> subprocess.Popen[bytes]:
    """What the system runs."""
    return process._process


def limit(process: BoundedProcess, limits: ProcessLimits) -> None:
    """Give a process that runs other limits."""
    process._limits = limits


def end_answers(process: BoundedProcess) -> None:
    """Let whoever waits for an answer see the end."""
    process._answers.put(b"")
