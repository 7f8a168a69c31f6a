"""What is posted is signed as the specification says, goes where it may, and takes no longer than it should."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading

import pytest
from openai import OpenAI

from helix_jobs.errors import ConfigurationError, NotDeliveredError
from helix_jobs.notify import webhook as webhook_module
from helix_jobs.notify.addresses import is_public, reachable_addresses
from helix_jobs.notify.signature import new_secret, signed_headers
from helix_jobs.notify.webhook import Webhook
from helix_jobs.notify_settings import checked_secret
from tests.unit.notify.receiver import EVENT, SECRET, receiving


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104, written out: independent of the library's."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


def test_the_signature_is_that_of_the_specification():
    # The example of Standard Webhooks' and Svix' documentation.
    body = b'{"test": 2432232314}'
    headers = signed_headers(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    message = b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + body
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac_sha256(key, message)).decode()


def test_openais_client_takes_what_was_posted_and_nothing_else():
    secret = checked_secret(new_secret())
    with receiving() as receiver:
        said = Webhook(receiver.url, secret, allow_private=True).send(EVENT)
    assert said == "127.0.0.1 answered 204"
    (request,) = receiver.requests
    assert request.path == "/hook?key=in-the-query"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    webhooks = OpenAI(api_key="none").webhooks
    event = webhooks.unwrap(request.body, request.headers, secret=secret)
    assert (event.id, event.type, event.data.id) == ("evt_0123", "batch.completed", "batch_12")
    assert event.created_at == 1_796_022_000
    with pytest.raises(Exception, match="signature"):
        webhooks.unwrap(request.body.replace(b"batch_12", b"batch_13"), request.headers, secret=secret)
    assert json.loads(request.body)["data"]["name"] == "Übersicht"


@pytest.mark.parametrize(("status", "reason"), [(500, "500"), (404, "404"), (302, "302, a redirect, which is not")])
def test_an_answer_that_is_no_success_is_no_delivery_and_no_redirect_is_followed(status, reason):
    with receiving(status) as receiver, pytest.raises(NotDeliveredError, match=reason) as raised:
        Webhook(receiver.url, SECRET, allow_private=True).send(EVENT)
    assert len(receiver.requests) == 1
    assert "in-the-query" not in str(raised.value), "an address may hold a secret"


def test_private_addresses_are_refused_unless_they_are_allowed():
    with receiving() as receiver:
        with pytest.raises(ConfigurationError, match="HELIX_WEBHOOK_ALLOW_PRIVATE=1"):
            Webhook(receiver.url, SECRET, allow_private=False).send(EVENT)
        with pytest.raises(ConfigurationError, match="localhost"):
            Webhook(receiver.url.replace("127.0.0.1", "localhost"), SECRET, allow_private=False).send(EVENT)
    assert not receiver.requests


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",  # noqa: S104  (an address that is refused)
        ),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *("::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "::7f00:1"),
        "2001:0:7f00:1::80ff:fffe",
    ],
)
def test_an_address_that_is_not_everybodys_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "172.15.0.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_an_address_of_the_internet_is_public(address):
    assert is_public(address)


def answer_with(monkeypatch, *lists):
    """Names resolve to these lists of addresses, one after the other; returns the names that were asked for."""
    asked, answers = [], list(lists)

    def getaddrinfo(host, port, **options):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr("helix_jobs.notify.addresses.socket.getaddrinfo", getaddrinfo)
    return asked


def test_one_private_address_among_several_is_enough_to_refuse(monkeypatch):
    answer_with(monkeypatch, ["1.1.1.1", "10.0.0.1"])
    with pytest.raises(ConfigurationError, match=r"hooks\.example"):
        reachable_addresses("hooks.example", 443, allow_private=False)


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_looked_at(monkeypatch):
    """A second answer, which names this machine, is never asked for."""
    asked = answer_with(monkeypatch, ["1.1.1.1"], ["127.0.0.1"])
    connected = []

    def create_connection(address, timeout):
        connected.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("helix_jobs.notify.webhook.socket.create_connection", create_connection)
    with pytest.raises(NotDeliveredError, match=r"the host hooks\.example was not reached: Connection refused"):
        Webhook("https://hooks.example/x", SECRET, allow_private=False).send(EVENT)
    assert asked == ["hooks.example"]
    assert connected == [("1.1.1.1", 443)]


def test_an_address_that_no_packet_reaches_does_not_stand_before_one_that_answers(monkeypatch):
    """A host of two addresses of which this machine reaches only the second."""

    def create_connection(address, timeout):
        if address[0] == "2001:db8::1":
            raise OSError(101, "Network is unreachable")
        connected = socket.socket()
        connected.connect(address)
        return connected

    monkeypatch.setattr("helix_jobs.notify.webhook.socket.create_connection", create_connection)
    with receiving() as receiver:
        answer_with(monkeypatch, ["2001:db8::1", "127.0.0.1"])
        url = f"http://hooks.example:{receiver.port}/x"
        assert Webhook(url, SECRET, allow_private=True).send(EVENT) == "hooks.example answered 204"
    assert receiver.requests[0].headers["host"] == f"hooks.example:{receiver.port}"


def test_a_name_without_an_address_is_no_delivery(monkeypatch):
    def getaddrinfo(host, port, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("helix_jobs.notify.addresses.socket.getaddrinfo", getaddrinfo)
    with pytest.raises(NotDeliveredError, match=r"hooks\.example has no address \(Name or service not known\)"):
        Webhook("https://hooks.example/x", SECRET, allow_private=False).send(EVENT)


def test_a_receiver_that_answers_by_drops_is_left(monkeypatch):
    """Each drop comes in time; the whole answer never does."""
    monkeypatch.setattr(webhook_module, "_LONGEST_SECONDS", 0.3)
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection:
                try:
                    while not stopped.wait(0.02):
                        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(NotDeliveredError, match=r"127\.0\.0\.1 was not reached"):
            Webhook(url, SECRET, allow_private=True).send(EVENT)
        stopped.set()
        thread.join()


def test_nothing_is_posted_when_the_time_is_over_before_the_connection_is_there(monkeypatch):
    class Over(threading.Timer):
        def start(self):
            self.function()

    monkeypatch.setattr("helix_jobs.notify.webhook.threading.Timer", Over)
    with receiving() as receiver:
        with pytest.raises(NotDeliveredError, match="it did not answer in time"):
            Webhook(receiver.url, SECRET, allow_private=True).send(EVENT)
        assert not receiver.requests


def test_an_answer_that_is_no_http_is_no_delivery():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n" * 10)

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(NotDeliveredError, match="BadStatusLine"):
            Webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/", SECRET, allow_private=True).send(EVENT)
        thread.join()
