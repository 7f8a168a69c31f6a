"""Programs and services that are told, and settings that make no sense."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

import psutil
import pytest
from sqlalchemy import update

from helix_jobs.errors import ConfigurationError, NotDeliveredError
from helix_jobs.notify.channels import channels_of
from helix_jobs.notify.command import Command
from helix_jobs.notify.event import Event
from helix_jobs.notify.messenger import Messenger, messengers
from helix_jobs.notify.notifier import Notifier
from helix_jobs.settings import Settings
from helix_jobs.storage import notices, schema
from tests.store_helpers import stored_batch
from tests.unit.notify.receiver import EVENT, SECRET, receiving
from tests.worker_box import wait_until

# apprise imports a module of Python that Python is going to remove.
of_apprise = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


def settings(**variables: str) -> Settings:
    return Settings.from_environment({f"HELIX_{name.upper()}": value for name, value in variables.items()})


def test_a_program_gets_the_event_on_its_standard_input_without_a_shell(tmp_path, monkeypatch):
    # An address of a webhook may hold a secret in its path.
    secrets = ("WEBHOOK_SECRET", "WEBHOOK_URL", "NOTIFY_APPRISE", "API_KEYS", "ENDPOINT_KEY")
    for name in (*secrets, "NAME_OF_MINE"):
        monkeypatch.setenv(f"HELIX_{name}", f"{name} of mine")
    code = (
        "import json, os, sys; json.dump([sys.argv[1:], json.load(sys.stdin),"
        " sorted(n for n, v in os.environ.items() if v.endswith(' of mine'))], open('told.json', 'w'))"
    )
    monkeypatch.chdir(tmp_path)
    said = Command(f'{sys.executable} -c "{code}" "two words" "$(touch shell)" ";" ').send(EVENT)
    assert said == f"{sys.executable} ended with exit code 0"
    arguments, event, got = json.loads((tmp_path / "told.json").read_text())
    assert arguments == ["two words", "$(touch shell)", ";"]
    assert event == json.loads(EVENT.body())
    assert got == ["HELIX_NAME_OF_MINE"], "secrets stay here"
    assert not (tmp_path / "shell").exists()


def test_a_program_that_fails_or_is_not_there_is_no_delivery():
    with pytest.raises(NotDeliveredError, match="exit code 3"):
        Command(f'{sys.executable} -c "raise SystemExit(3)"').send(EVENT)
    with pytest.raises(NotDeliveredError, match="cannot be started: No such file"):
        Command("/no/such/program --key secret").send(EVENT)


@pytest.mark.skipif(os.name == "nt", reason="processes of a session")
def test_a_program_that_does_not_end_is_ended_with_what_it_started(tmp_path):
    script = tmp_path / "slow"
    script.write_text(
        f"#!/bin/sh\n{sys.executable} -c 'import time; time.sleep(60)' & echo $! > {tmp_path}/pid\nwait\n"
    )
    script.chmod(0o755)
    with pytest.raises(NotDeliveredError, match="did not end within 4 s"):
        Command(str(script), longest=4.0).send(EVENT)
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", "it still runs")


@of_apprise
def test_services_of_apprise_are_told_in_words():
    pytest.importorskip("apprise")
    with receiving(200, 500) as receiver:
        messenger = Messenger(f"json://127.0.0.1:{receiver.port}/a")
        assert messenger.send(EVENT) == "1 told"
        with pytest.raises(NotDeliveredError, match="did not take it"):
            messenger.send(EVENT)
    message = json.loads(receiver.requests[0].body)
    assert message["title"] == "Batch Übersicht has ended"
    assert message["message"].splitlines() == ["3 jobs: 2 completed, 1 failed", "batch_12 batch.completed"]


@of_apprise
def test_a_service_that_has_taken_an_event_does_not_get_it_again_while_another_is_tried(database):
    pytest.importorskip("apprise")
    batch_id, _ = stored_batch(database, 1)
    with database.write() as c:
        notice = notices.NewNotice(notices.PAUSED, {"why": "it was enough"}, batch_id)
        notices.add_notice(c, notice, datetime.now(UTC))
    with receiving() as mail, receiving(500) as chat:
        urls = f"json://127.0.0.1:{mail.port}/a json://127.0.0.1:{chat.port}/b"
        notifier = Notifier(database, channels_of(settings(notify_apprise=urls)), None)
        notifier.look()
        with database.write() as c:
            c.execute(update(schema.notices).values(due_at=datetime.now(UTC)))
        notifier.look()
    assert (len(mail.requests), len(chat.requests)) == (1, 2)
    with database.read() as c:
        (told,) = notices.newest_notices(c, 2)
    assert told.delivered_at is not None


@of_apprise
def test_an_address_that_apprise_does_not_know_is_refused_without_being_quoted():
    pytest.importorskip("apprise")
    with pytest.raises(ConfigurationError, match="address 2 of HELIX_NOTIFY_APPRISE") as raised:
        messengers("json://127.0.0.1/a nonsense://user:hunter2@host")
    assert "hunter2" not in str(raised.value)


def test_without_apprise_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ConfigurationError, match=r'pip install -e "\.\[apprise\]"'):
        Messenger("json://127.0.0.1/a")


def test_every_kind_has_words_of_its_own():
    for kind in (notices.COMPLETED, notices.FAILED, notices.EXPIRED, notices.CANCELLED, notices.PAUSED):
        event = Event("evt_1", kind, datetime.now(UTC), {"id": "b-1", "why": "it was\nenough", "errors": {"oom": 2}})
        assert event.title().startswith("Batch b-1 ")
        assert "says" not in event.title()
        assert event.text().splitlines()[:1] == ["2 oom"]
    assert Event("evt_1", notices.TEST, datetime.now(UTC), {}).title() == "Helix says helix.test"


def test_the_settings_say_which_channels_there_are():
    assert channels_of(settings()) == ()
    found = channels_of(settings(webhook_url="https://hooks.example/x", webhook_secret=SECRET, notify_command="true"))
    assert [channel.name for channel in found] == ["webhook", "command"]
    with pytest.raises(ConfigurationError, match="helix notify secret"):
        channels_of(settings(webhook_url="https://hooks.example/x"))


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("webhook_url", "ftp://hooks.example/x", "https://HOST/PATH"),
        ("webhook_url", "https://user:hunter2@hooks.example/x", "leave them out"),
        ("webhook_url", "https://hooks.example/hunter2#x", "behind a #"),
        ("webhook_url", "https://hooks.example:99999/hunter2", "host and port"),
        ("webhook_url", "https://hooks.example/hunter2\nX: y", "characters"),
        ("webhook_secret", "hunter2", "helix notify secret"),
        ("webhook_secret", "whsec_aHVudGVyMg==", "24 to 64 bytes"),
        ("webhook_allow_private", "yes", "from 0 to 1"),
        ("notify_command", "mail 'hunter2", "close the quotation"),
        ("notify_failing", "101", "from 0 to 100"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(name, value, remedy):
    with pytest.raises(ConfigurationError, match=remedy) as raised:
        settings(**{name: value})
    assert f"HELIX_{name.upper()}" in str(raised.value)
    assert "hunter2" not in str(raised.value)
