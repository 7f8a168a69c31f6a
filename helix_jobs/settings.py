"""Environment -> frozen Settings. Read at entry points only; everything else receives what it needs."""

from __future__ import annotations

import logging
import math
import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

from helix_jobs.errors import ConfigurationError
from helix_jobs.files import PRIVATE_DIRECTORY, is_open_to_others, require_own_directory
from helix_jobs.redis_url import checked_redis_url

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

_T = TypeVar("_T", int, None)

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")
DTYPES: Final = ("auto", "float32", "float16", "bfloat16", "int8")
MAX_DEPTH: Final = 16
# Batch slots where neither a setting nor the device says otherwise.
USUAL_BATCH_SIZE: Final = 32
COMPILE_CHOICES: Final = ("auto", "on", "off")
REPRODUCIBLE_CHOICES: Final = ("auto", "on")
ENGINES: Final = ("helix", "fake")
MAX_NEW_TOKENS: Final = 131_072
# Any of these in a directory says that it has been a HELIX_HOME before.
_MARKS_OF_A_HOME: Final = frozenset({"helix.db", "broker", "worker.log"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the ``HELIX_*`` environment says.

    Attributes:
        home: HELIX_HOME; database, broker socket, models and logs live here. Made with mode 0700.
        redis_url: HELIX_REDIS_URL; None means the embedded broker under ``home``.
        database_url: HELIX_DATABASE_URL as SQLAlchemy understands it; SQLite ``helix.db`` under ``home`` by default.
        target_model: HELIX_TARGET_MODEL; a hub id, a directory, a ``.gguf`` file, or ``demo``.
        draft_model: HELIX_DRAFT_MODEL; any of these, ``int8`` (an int8 copy of the target), ``lookup``, a model behind
            ``lookup+``, or ``none``.
        device: HELIX_DEVICE; None picks the first available (DirectML, CUDA/ROCm, XPU, MPS, CPU).
        dtype: HELIX_DTYPE; ``auto`` takes the best the device has for the checkpoint, ``int8`` quantises the target.
        compile: HELIX_COMPILE; ``auto`` compiles CPU kernels where there is a C++ compiler, ``on`` insists.
        reproducible: HELIX_REPRODUCIBLE; ``auto`` makes answers independent of what runs beside them where that costs
            next to nothing, ``on`` at any price.
        max_batch_size: HELIX_MAX_BATCH_SIZE; sequences that run at once, None for what the device serves best.
        token_budget: HELIX_TOKEN_BUDGET; prompt tokens a step computes at most, None for what the device serves best.
        speculation_depth: HELIX_SPECULATION_DEPTH; None (``auto``) chooses each step, a number is a fixed K, 0 off.
        kv_cache_mb: HELIX_KV_CACHE_MB; memory for keys and values of both models, None sizes it from free memory.
        max_jobs_per_batch: HELIX_MAX_JOBS_PER_BATCH; a submission with more lines is refused.
        max_prompt_chars: HELIX_MAX_PROMPT_CHARS; a line whose prompt or messages hold more characters is refused.
        max_tokens_per_job: HELIX_MAX_TOKENS_PER_JOB; a line that asks for more new tokens is refused.
        shutdown_grace: HELIX_SHUTDOWN_GRACE; seconds a stopping worker goes on before it hands jobs back.
        job_timeout: HELIX_JOB_TIMEOUT; seconds a job may run in the engine, None for as long as it takes.
        lock_dir: HELIX_LOCK_DIR; where workers lock their device, None for this user's place on this machine.
        metrics_port: HELIX_METRICS_PORT; where the worker serves its metrics, None for not at all.
        metrics_host: HELIX_METRICS_HOST; the address it serves them on.
        log_level: HELIX_LOG_LEVEL.
        log_format: HELIX_LOG_FORMAT.
        engine: HELIX_ENGINE; ``helix``, or ``fake``: a deterministic stand-in without models, for trying the queue.
    """

    home: Path
    redis_url: str | None
    database_url: str
    target_model: str = "demo"
    draft_model: str = "lookup+int8"
    device: str | None = None
    dtype: str = "auto"
    compile: str = "auto"
    reproducible: str = "auto"
    max_batch_size: int | None = None
    token_budget: int | None = None
    speculation_depth: int | None = None
    kv_cache_mb: int | None = None
    max_jobs_per_batch: int = 5_000_000
    max_prompt_chars: int = 1_000_000
    max_tokens_per_job: int = MAX_NEW_TOKENS
    shutdown_grace: float = 20.0
    job_timeout: int | None = None
    lock_dir: Path | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log_level: str = "info"
    log_format: str = "text"
    engine: str = "helix"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read ``HELIX_*`` variables; empty ones count as absent.

        Raises:
            ConfigurationError: A variable is malformed; the message names it and what is accepted.
        """
        values = {k: v.strip() for k, v in (os.environ if environment is None else environment).items() if v.strip()}
        home = _directory("HELIX_HOME", values.get("HELIX_HOME", ".helix"))
        return cls(
            home=home,
            redis_url=_redis_url(values),
            database_url=normalize_database_url(values.get("HELIX_DATABASE_URL", sqlite_url(home / "helix.db"))),
            target_model=values.get("HELIX_TARGET_MODEL", "demo"),
            draft_model=values.get("HELIX_DRAFT_MODEL", "lookup+int8"),
            device=values.get("HELIX_DEVICE"),
            dtype=_choice(values, "HELIX_DTYPE", DTYPES, "auto"),
            compile=_choice(values, "HELIX_COMPILE", COMPILE_CHOICES, "auto"),
            reproducible=_choice(values, "HELIX_REPRODUCIBLE", REPRODUCIBLE_CHOICES, "auto"),
            max_batch_size=_integer(values, "HELIX_MAX_BATCH_SIZE", None, 1, 4096),
            token_budget=_integer(values, "HELIX_TOKEN_BUDGET", None, 16, 1_048_576),
            speculation_depth=_depth(values),
            kv_cache_mb=_integer(values, "HELIX_KV_CACHE_MB", None, 1, 10_000_000),
            max_jobs_per_batch=_integer(values, "HELIX_MAX_JOBS_PER_BATCH", 5_000_000, 1, 1_000_000_000),
            max_prompt_chars=_integer(values, "HELIX_MAX_PROMPT_CHARS", 1_000_000, 1, 4_194_304),
            max_tokens_per_job=_integer(values, "HELIX_MAX_TOKENS_PER_JOB", MAX_NEW_TOKENS, 1, MAX_NEW_TOKENS),
            shutdown_grace=float(_integer(values, "HELIX_SHUTDOWN_GRACE", 20, 0, 86_400)),
            job_timeout=_integer(values, "HELIX_JOB_TIMEOUT", None, 1, 31_536_000),
            lock_dir=_directory("HELIX_LOCK_DIR", values["HELIX_LOCK_DIR"]) if "HELIX_LOCK_DIR" in values else None,
            metrics_port=_integer(values, "HELIX_METRICS_PORT", None, 1, 65_535),
            metrics_host=values.get("HELIX_METRICS_HOST", "127.0.0.1"),
            log_level=_choice(values, "HELIX_LOG_LEVEL", LOG_LEVELS, "info"),
            log_format=_choice(values, "HELIX_LOG_FORMAT", LOG_FORMATS, "text"),
            engine=_choice(values, "HELIX_ENGINE", ENGINES, "helix"),
        )

    def to_environment(self) -> dict[str, str]:
        """The ``HELIX_*`` variables a child process needs to read the same settings; absent values are empty."""
        values = {f"HELIX_{field.name.upper()}": getattr(self, field.name) for field in fields(self)}
        values["HELIX_SHUTDOWN_GRACE"] = math.ceil(self.shutdown_grace)
        return {name: "" if value is None else str(value) for name, value in values.items()}

    def make_home(self) -> Path:
        """Create ``home`` for this user alone (mode 0700 where the system has modes) and return it.

        A directory that is there and open to others is closed (0700) if it is empty or a home already, as initdb does.
        Trade-off: any other one may hold somebody's shared files, so it is left as it is, with a warning; what Helix
        makes in it is private all the same.

        Raises:
            ConfigurationError: The directory cannot be made, or `check_home` refuses it.
        """
        self.check_home()
        try:
            self.home.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            if is_open_to_others(self.home):
                self._close_home()
        except OSError as error:
            raise ConfigurationError(f"HELIX_HOME {self.home} cannot be made: {error.strerror}; set another") from error
        return self.home

    def check_home(self) -> None:
        """Make sure that ``home`` is nobody else's; one that is not there is fine.

        Whoever owns the directory can exchange what is in it, and Helix runs code from there: its compiled kernels. A
        link is refused too, for it may have been put there to lead somewhere else.

        Raises:
            ConfigurationError: It is a symbolic link, no directory, or another user's.
        """
        try:
            if self.home.is_symlink():
                raise ConfigurationError(
                    f"HELIX_HOME {self.home} is a symbolic link, which Helix does not follow; "
                    f"set HELIX_HOME to {self.home.resolve()} if that directory is yours"
                )
            require_own_directory(self.home)
        except OSError as error:
            raise ConfigurationError(f"HELIX_HOME {self.home}: {error.strerror}; set another") from error

    def _close_home(self) -> None:
        """Take group's and others' access away."""
        found = {entry.name for entry in self.home.iterdir()}
        if not found or found & _MARKS_OF_A_HOME:
            self.home.chmod(PRIVATE_DIRECTORY)
        elif self.home.stat().st_mode & stat.S_IWOTH:
            raise ConfigurationError(
                f"HELIX_HOME {self.home} can be written by every user of this machine; "
                f"chmod o-w it, or set HELIX_HOME to a directory of your own"
            )
        else:
            logger.warning("HELIX_HOME %s is open to other users; chmod 700 it, or set another", self.home)


def _directory(name: str, text: str) -> Path:
    """An absolute path; ``~`` and ``~user`` are home directories."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # no such user, or nobody knows this one's home directory
        raise ConfigurationError(
            f"{name} is {text!r}, and no such home directory is known; give a full path"
        ) from error


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file, whatever stands in its path: ``?`` and ``%`` mean something in a URL."""
    return f"sqlite:///{quote(str(file), safe='/:')}"


def normalize_database_url(url: str) -> str:
    """Spell the two accepted database families the way SQLAlchemy needs them (Postgres through psycopg 3).

    Raises:
        ConfigurationError: The scheme is another, or there is more than one ``@``: then a part of the password would
            be read as the host, and shown in messages.
    """
    if not url.startswith("sqlite:") and url.count("@") > 1:
        raise ConfigurationError(
            "HELIX_DATABASE_URL holds more than one @; percent-encode what is special in user name and password "
            "(@ is %40, / is %2F, : is %3A, # is %23, ? is %3F, % is %25)"
        )
    for prefix in ("postgresql+psycopg://", "postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    if url.startswith("sqlite:"):
        return url
    scheme = url.split(":", 1)[0]
    raise ConfigurationError(f"HELIX_DATABASE_URL has the scheme {scheme!r}; use sqlite:/// or postgresql://")


def _redis_url(values: Mapping[str, str]) -> str | None:
    url = values.get("HELIX_REDIS_URL")
    return None if url is None else checked_redis_url(url)


def _choice(values: Mapping[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    value = values.get(name, default).lower()
    if value not in choices:
        raise ConfigurationError(f"{name} is {value!r}; use one of {', '.join(choices)}")
    return value


def _depth(values: Mapping[str, str]) -> int | None:
    """``auto`` is None."""
    if values.get("HELIX_SPECULATION_DEPTH", "auto").lower() == "auto":
        return None
    try:
        return _integer(values, "HELIX_SPECULATION_DEPTH", None, 0, MAX_DEPTH)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}, or auto") from error


def _integer(values: Mapping[str, str], name: str, default: _T, low: int, high: int) -> int | _T:
    text = values.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise ConfigurationError(f"{name} is {text!r}; give a whole number from {low} to {high}")
    return value
