"""docker-compose.yml says what the documentation promises, in words Compose understands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from helix_jobs.cli.group import cli
from helix_jobs.settings import Settings
from helix_jobs.worker import ending as run

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"

DURATION = {"type": "string", "pattern": "^([0-9]+(h|m|s|ms))+$"}
STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
# The part of the Compose specification this file may use; anything else in it is a typing error.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["services", "volumes"],
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "services": {"type": "object", "additionalProperties": {"$ref": "#/$defs/service"}},
        "volumes": {"type": "object", "additionalProperties": {"type": "null"}},
    },
    "$defs": {
        "service": {
            "type": "object",
            "required": ["image", "restart"],
            "additionalProperties": False,
            "properties": {
                "image": {"type": "string"},
                "command": STRINGS,
                "environment": {"type": "object", "additionalProperties": {"type": "string"}},
                "ports": {"type": "array", "items": {"type": "string", "pattern": "^127\\.0\\.0\\.1:[0-9]+:[0-9]+$"}},
                "volumes": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+:/[a-z/]+$"}},
                "restart": {"enum": ["no", "unless-stopped"]},
                "profiles": STRINGS,
                "stop_grace_period": DURATION,
                "healthcheck": {
                    "type": "object",
                    "required": ["test", "interval", "timeout", "retries"],
                    "additionalProperties": False,
                    "properties": {
                        "test": {**STRINGS, "prefixItems": [{"enum": ["CMD"]}]},
                        "interval": DURATION,
                        "timeout": DURATION,
                        "retries": {"type": "integer"},
                        "start_period": DURATION,
                    },
                },
                "depends_on": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["condition"],
                        "additionalProperties": False,
                        "properties": {"condition": {"enum": ["service_healthy", "service_completed_successfully"]}},
                    },
                },
                "build": {
                    "type": "object",
                    "required": ["context", "dockerfile_inline"],
                    "additionalProperties": False,
                    "properties": {"context": {"const": "."}, "dockerfile_inline": {"type": "string"}},
                },
            },
        }
    },
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))


def test_it_is_a_compose_file(compose: dict[str, Any]) -> None:
    jsonschema.validate(compose, SCHEMA)
    names = set(compose["services"])
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= names
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= set(compose["volumes"])


def test_what_others_wait_for_has_a_health_check(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        for name, wish in service.get("depends_on", {}).items():
            if wish["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
            else:
                assert services[name]["restart"] == "no", f"{name} never completes"


def test_redis_keeps_what_it_is_given(compose: dict[str, Any]) -> None:
    command = compose["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_the_redis_command_is_understood(compose: dict[str, Any], tmp_path: Path) -> None:
    server = shutil.which("redis-server")
    if server is None:
        from helix_jobs.broker.embedded import _server_binary

        if sys.platform == "win32":
            pytest.skip("no server to ask")
        server = str(_server_binary())
    command = compose["services"]["redis"]["command"][1:]
    socket = tmp_path.parent / "s"
    process = subprocess.Popen(
        [server, *command, "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "eady to accept connections" in line or "accept connections at" in line:
                break
        assert process.poll() is None, "".join(lines)
    finally:
        process.terminate()
        process.communicate()


def test_settings_understand_the_environment(compose: dict[str, Any]) -> None:
    environment = {
        name: value.replace("${HELIX_POSTGRES_PASSWORD:-helix}", "helix").replace("${HELIX_TARGET_MODEL:-demo}", "demo")
        for name, value in compose["services"]["worker"]["environment"].items()
    }
    known = Settings.from_environment(environment).to_environment()
    assert set(environment) <= set(known), "a variable nobody reads"
    assert known["HELIX_DATABASE_URL"] == "postgresql+psycopg://helix:helix@postgres:5432/helix"
    assert Settings.from_environment(known).to_environment() == known


def test_the_worker_has_longer_to_stop_than_it_takes(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    # A worker whose database takes no writes ends itself at last: see `_give_up_after`.
    at_last = run.HAND_BACK_SECONDS + 2 * run.HARD_EXIT_SECONDS
    grace = int(worker["environment"]["HELIX_SHUTDOWN_GRACE"])
    assert int(worker["stop_grace_period"].removesuffix("s")) > grace + at_last


@pytest.mark.parametrize("service", ["migrations", "worker"])
def test_its_commands_exist(compose: dict[str, Any], service: str) -> None:
    program, *arguments = compose["services"][service]["command"]
    assert program == "helix"
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0, result.output


def test_the_image_holds_what_the_package_needs(compose: dict[str, Any]) -> None:
    recipe = compose["services"]["worker"]["build"]["dockerfile_inline"]
    root = COMPOSE.parent
    copied = [part for line in recipe.splitlines() if line.startswith("COPY") for part in line.split()[1:-1]]
    assert {"pyproject.toml", "migrations", "helix_jobs"} <= set(copied)
    for name in ("pyproject.toml", "migrations", "helix_jobs"):
        assert (root / name).exists()
    assert "USER helix" in recipe, "nothing runs as root"


def test_workers_can_be_scaled(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert "hostname" not in worker, "remote control tells workers apart by process number and host name"
    assert "ports" not in worker, "only one container can have it"
