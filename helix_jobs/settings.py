"""Environment -> frozen Settings. Only entry points read it; all other code receives the values it needs."""

from __future__ import annotations

import logging
import math
import os
import stat
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_BATCH_SIZE, MAX_NEW_TOKENS, MAX_SPECULATION_DEPTH
from helix_jobs.database_url import normalize_database_url, sqlite_url
from helix_jobs.endpoint_url import checked_endpoint_key, checked_endpoint_url
from helix_jobs.errors import ConfigurationError
from helix_jobs.files import PRIVATE_DIRECTORY, is_open_to_others, require_own_directory
from helix_jobs.notify_settings import NotifySettings
from helix_jobs.opening_hours import checked_opening_hours
from helix_jobs.redis_url import checked_redis_url
from helix_jobs.setting import (
    Choice,
    Directories,
    Directory,
    NamedDirectories,
    Text,
    WholeNumber,
    declared,
    settings_of,
)
from helix_jobs.yield_when import checked_yield_when

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")
DTYPES: Final = ("auto", "float32", "float16", "bfloat16", "int8", "packed")
KV_CACHE_DTYPES: Final = ("auto", "int8")
ANSWER_CACHES: Final = ("on", "model", "off")
# Any of these in a directory shows that it has been a HELIX_HOME before.
_MARKS_OF_A_HOME: Final = frozenset({"helix.db", "broker", "worker.log"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(NotifySettings):
    """The values of the ``HELIX_*`` variables. Each field declares how its variable is read and its purpose."""

    home: Path = field(
        metadata=declared(Directory(), "Where database, broker socket, demo model and logs live. Made with mode 0700.")
    )
    redis_url: str | None = field(
        metadata=declared(Text(checked_redis_url), "The broker; without it the embedded one under HELIX_HOME.")
    )
    database_url: str = field(
        metadata=declared(
            Text(normalize_database_url),
            "The database, as SQLAlchemy understands it; default: SQLite's helix.db under HELIX_HOME.",
        )
    )
    target_model: str = field(
        default="demo",
        metadata=declared(Text(), "Target model: hub id, directory, .gguf file, or demo.", "--target", "MODEL"),
    )
    draft_model: str = field(
        default="lookup+int8",
        metadata=declared(
            Text(),
            "What drafts: a model, int8 (a copy of the target), lookup, lookup+int8, lookup+MODEL, or none.",
            "--draft",
            "DRAFT",
        ),
    )
    adapters: NamedDirectories = field(
        default_factory=NamedDirectories,
        metadata=declared(
            Directories(),
            "LoRA adapter of the target that lines choose by this name: a directory of peft. May be repeated.",
            "--adapter",
            "NAME=DIRECTORY",
        ),
    )
    device: str | None = field(
        default=None,
        metadata=declared(
            Text(),
            "Device: directml, cuda, rocm, xpu, mps or cpu, with an index such as cuda:1; default: the first "
            "available.",
            "--device",
            "NAME",
        ),
    )
    dtype: str = field(
        default="auto",
        metadata=declared(
            Choice(DTYPES),
            "Number format of the weights; int8 quantises the target too; packed keeps quantised weights in blocks.",
            "--dtype",
        ),
    )
    compile: str = field(
        default="auto",
        metadata=declared(
            Choice(("auto", "on", "off")),
            "CPU kernels compiled on this machine; default: where there is a C++ compiler.",
            "--compile/--no-compile",
        ),
    )
    reproducible: str = field(
        default="auto",
        metadata=declared(
            Choice(("auto", "on")),
            "The same answers whatever else runs in the batch, even if slower; default: where it costs little.",
            "--reproducible",
        ),
    )
    max_batch_size: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(1, MAX_BATCH_SIZE),
            "Sequences that run at once; default: what the device likes.",
            "--max-batch-size",
        ),
    )
    interactive_slots: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(1, MAX_BATCH_SIZE),
            "Sequences of interactive requests at once while there is bulk work; default: half of the batch.",
            "--interactive-slots",
        ),
    )
    token_budget: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(16, 1_048_576),
            "Prompt tokens a step computes at most; default: what the device likes.",
            "--token-budget",
        ),
    )
    speculation_depth: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(0, MAX_SPECULATION_DEPTH, none="auto"),
            "Tokens drafted ahead: auto chooses each step by what pays, 0 to 16 is fixed, 0 turns speculation off.",
            "--speculation-depth",
            "auto|K",
        ),
    )
    kv_cache_mb: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(1, 10_000_000), "Memory for keys and values; default: from free memory.", "--kv-cache-mb"
        ),
    )
    kv_cache_dtype: str = field(
        default="auto",
        metadata=declared(
            Choice(KV_CACHE_DTYPES),
            "Number format of keys and values: auto is the model's; int8 holds about twice as many tokens in 16 bits' "
            "place, and changes some answers.",
            "--kv-cache-dtype",
        ),
    )
    answer_cache: str = field(
        default="on",
        metadata=declared(
            Choice(ANSWER_CACHES),
            "Whether equal requests take a stored answer: on, from a worker that answers in the same way; model, from "
            "any with the same model, whatever its dtype and kernels; off.",
        ),
    )
    answer_cache_mb: int = field(
        default=0,
        metadata=declared(
            WholeNumber(0, 10_000_000),
            "Megabytes of answers that a purge keeps for equal requests; those not used for longest go first.",
        ),
    )
    max_jobs_per_batch: int = field(
        default=5_000_000,
        metadata=declared(
            WholeNumber(1, 1_000_000_000),
            "A submission that asks for more answers is refused.",
        ),
    )
    max_prompt_chars: int = field(
        default=1_000_000,
        metadata=declared(
            WholeNumber(1, 4_194_304), "A line whose prompt or messages hold more characters is refused."
        ),
    )
    max_tokens_per_job: int = field(
        default=MAX_NEW_TOKENS,
        metadata=declared(WholeNumber(1, MAX_NEW_TOKENS), "A line that asks for more new tokens an answer is refused."),
    )
    shutdown_grace: float = field(
        default=20.0,
        metadata=declared(
            WholeNumber(0, 86_400, is_float=True),
            "How long a stopping worker finishes jobs.",
            "--shutdown-grace",
            "SECONDS",
        ),
    )
    job_timeout: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(1, 31_536_000),
            "How long a job may run before it fails with code deadline; default: as long as it takes.",
            "--job-timeout",
            "SECONDS",
        ),
    )
    hours: str | None = field(
        default=None,
        metadata=declared(
            Text(checked_opening_hours),
            "When a worker works, such as 22:00-07:00; outside these hours it holds no models. Default: always.",
            "--hours",
            "HOURS",
        ),
    )
    yield_when: str | None = field(
        default=None,
        metadata=declared(
            Text(checked_yield_when),
            "Signs that somebody else uses the machine, such as load>50%, memory>20% or process:NAME; then a worker "
            "yields. Default: none.",
            "--yield-when",
            "SIGNS",
        ),
    )
    lock_dir: Path | None = field(
        default=None,
        metadata=declared(Directory(), "Where workers lock their device; default: this user's place on this machine."),
    )
    metrics_port: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(1, 65_535), "Serve Prometheus metrics on this port; default: not at all.", "--metrics-port"
        ),
    )
    metrics_host: str = field(
        default="127.0.0.1",
        metadata=declared(Text(), "Address to serve them on; default: this machine only.", "--metrics-host", "ADDRESS"),
    )
    serve_host: str = field(
        default="127.0.0.1",
        metadata=declared(
            Text(), "Address that serve answers on; default: this machine only. Others need keys.", "--host", "ADDRESS"
        ),
    )
    serve_port: int = field(
        default=8000,
        metadata=declared(WholeNumber(0, 65_535), "Port that serve answers on; 0 takes a free one.", "--port"),
    )
    api_keys: str | None = field(
        default=None,
        metadata=declared(
            Text(), "Keys that serve asks for, with commas between them, or sha256: and a key's digest; default: none."
        ),
    )
    max_open_requests: int = field(
        default=1000,
        metadata=declared(WholeNumber(1, 100_000), "Requests that may wait for answers of serve at once."),
    )
    requests_per_minute: int | None = field(
        default=None,
        metadata=declared(
            WholeNumber(1, 1_000_000), "Requests that a key may send to serve in a minute; default: as many as come."
        ),
    )
    max_upload_mb: int = field(
        default=512,
        metadata=declared(WholeNumber(1, 100_000), "Megabytes of a file that serve takes; a larger one is refused."),
    )
    request_retention: int = field(
        default=24,
        metadata=declared(WholeNumber(0, 876_000), "Hours after which serve removes answered requests; 0 keeps them."),
    )
    log_level: str = field(
        default="info",
        metadata=declared(Choice(LOG_LEVELS), "What to log; debug shows tracebacks of errors.", "--log-level"),
    )
    log_format: str = field(
        default="text", metadata=declared(Choice(LOG_FORMATS), "json writes one object a line.", "--log-format")
    )
    engine: str = field(
        default="helix",
        metadata=declared(
            Choice(("helix", "endpoint", "fake")),
            "What computes: Helix, a server of yours (endpoint), or a stand-in without models to try the queue (fake).",
        ),
    )
    endpoint_url: str | None = field(
        default=None,
        metadata=declared(
            Text(checked_endpoint_url), "With HELIX_ENGINE=endpoint: the address of your OpenAI-compatible server."
        ),
    )
    endpoint_key: str | None = field(
        default=None, metadata=declared(Text(checked_endpoint_key), "The key that this server asks for; default: none.")
    )
    endpoint_model: str | None = field(
        default=None, metadata=declared(Text(), "The model's name on this server; default: the only one there.")
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read ``HELIX_*`` variables; empty ones count as absent.

        Raises:
            ConfigurationError: A variable is malformed; the message names it and the accepted values.
        """
        texts = {k: v.strip() for k, v in (os.environ if environment is None else environment).items() if v.strip()}
        texts.setdefault("HELIX_HOME", ".helix")
        found: dict[str, Any] = {"redis_url": None}
        for name, setting in SETTINGS.items():
            if setting.variable in texts:
                found[name] = setting.read(texts[setting.variable])
        found.setdefault("database_url", sqlite_url(found["home"] / "helix.db"))
        return cls(**found)

    def to_environment(self) -> dict[str, str]:
        """The ``HELIX_*`` variables a child process needs to read the same settings; absent values are empty."""
        values = {setting.variable: getattr(self, name) for name, setting in SETTINGS.items()}
        values["HELIX_SHUTDOWN_GRACE"] = math.ceil(self.shutdown_grace)
        return {name: "" if value is None else str(value) for name, value in values.items()}

    def make_home(self) -> Path:
        """Create ``home`` for this user alone (mode 0700 where the system has modes) and return it.

        An existing directory that others can access is made private (0700) if it is empty or already a home, as initdb
        does. Trade-off: any other directory may hold shared files, so it is left as it is, with a warning; Helix's own
        files in it are private all the same.

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
        """Make sure that ``home`` belongs to no other user; a missing one is fine.

        The directory's owner can replace its files, and Helix runs code from there: its compiled kernels. A link is
        refused too, as another user may have put it there.

        Raises:
            ConfigurationError: ``home`` is a symbolic link, no directory, or another user's.
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
        """Remove the access of group and others."""
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


# Field's name -> its declaration, in the order of the fields.
SETTINGS: Final = settings_of(fields(Settings))
