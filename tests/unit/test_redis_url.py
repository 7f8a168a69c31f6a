"""HELIX_REDIS_URL: the three schemes docs/settings.md names, and a sentence with the remedy for everything else."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from helix_jobs.cli.group import cli
from helix_jobs.errors import ConfigurationError
from helix_jobs.redis_url import checked_redis_url
from helix_jobs.settings import Settings


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6379",
        "redis://:s%2F@[::1]:6379/15",
        "rediss://helix:pw@redis.example:6380/0?ssl_ca_certs=/etc/ca.pem",
        "redis+socket:///run/redis.sock",
        "redis+socket://helix:pw@/run/redis.sock?virtual_host=2",
        "memory://",
    ],
)
def test_what_is_taken_is_taken_as_it_is(url):
    assert checked_redis_url(url) == url


def test_a_schemes_case_does_not_matter():
    assert checked_redis_url("REDIS://Host/0") == "redis://Host/0"


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("localhost", "write redis://localhost:6379/0"),
        ("localhost:6379", "write redis://localhost:6379/0"),
        ("10.0.0.7:7000/", "write redis://10.0.0.7:7000/0"),
        ("/run/redis.sock", "write redis+socket:///run/redis.sock"),
        ("redis:localhost", "use redis://, rediss://"),
        (":s3cret@host", "use redis://, rediss://"),
        ("amqp://guest:s3cret@127.0.0.1//", "has the scheme 'amqp', which is no Redis; use redis://"),
        ("pyamqp://x", "no Redis"),
        ("filesystem://", "no Redis"),
        ("sqs://", "no Redis"),
        ("sentinel://host:26379", "no Redis"),
        ("kafka://h", "no Redis"),
        ("memory://x", "no Redis"),
        ("http://h", "no Redis"),
        ("s3cret word://h", "scheme '?'"),
        ("redis://:s3cret@host:port/0", "redis://HOST:PORT/NUMBER"),
        ("redis://host:99999/0", "redis://HOST:PORT/NUMBER"),
        ("redis://:s3cret@host/first", "database's number"),
        ("redis://:half/s3cret@host:6379/0", "/ is %2F"),
        ("redis:///run/redis.sock", "redis+socket:///absolute/path.sock"),
        ("redis://host/0?socket_timeout=3", "has the option 'socket_timeout'; a redis:// URL takes no options"),
        ("redis+socket:///run/s?db=3", "has the option 'db'; a redis+socket:// URL takes the options virtual_host"),
        ("rediss://host/0?ssl_ca=x", "takes the options ssl_ca_certs, ssl_cert_reqs, ssl_certfile"),
        ("redis+socket://", "redis+socket:///absolute/path.sock"),
        ("redis+socket://run.sock", "names no socket"),
    ],
)
def test_everything_else_is_refused_with_the_remedy(url, remedy):
    with pytest.raises(ConfigurationError, match="HELIX_REDIS_URL") as caught:
        Settings.from_environment({"HELIX_REDIS_URL": url})
    assert remedy in str(caught.value)
    assert not {"s3cret", "half"} & set(re.findall(r"\w+", str(caught.value)))


@pytest.mark.parametrize("command", [["submit", "-"], ["status"], ["list"], ["worker"], ["doctor"], ["db", "current"]])
def test_every_command_says_so(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HELIX_REDIS_URL", "localhost")
    monkeypatch.setenv("HELIX_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(cli, [*command, "--json"], input='{"prompt": "a"}\n')
    assert done.exit_code == 2
    assert "write redis://localhost:6379/0" in json.loads(done.stdout.splitlines()[-1])["error"]["message"]
    assert not (tmp_path / "home").exists()


def test_the_python_client_refuses_it_too(tmp_path):
    from helix_jobs import HelixClient

    settings = Settings(home=tmp_path, redis_url="amqp://h//", database_url=f"sqlite:///{tmp_path / 'helix.db'}")
    with HelixClient(settings) as client:
        with pytest.raises(ConfigurationError, match="no Redis"):
            client.submit([{"prompt": "a"}])
        assert list(client.list()) == []
