"""No answer is waited for without an end, and long work is not cut off."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import text

from helix_jobs import HelixClient
from helix_jobs.errors import DatabaseUnreachableError
from helix_jobs.settings import Settings
from helix_jobs.storage.calls_in_flight import CallsInFlight
from helix_jobs.storage.database import Database
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.time_limits import TimeLimits
from tests.store_helpers import ping, stored_batch
from tests.tcp_proxy import TcpProxy
from tests.worker_box import wait_until

QUICK = TimeLimits(statement=1.0, answer_margin=0.5, sign_of_life=2.0)


@pytest.fixture
def proxy(postgres_database):
    with psycopg.connect(postgres_database.url.render_as_string(hide_password=False).replace("+psycopg", "")) as c:
        port = c.info.port
    between = TcpProxy(port)
    yield between
    between.close()


@pytest.fixture
def through_proxy(postgres_database, proxy):
    """The database, reached by TCP through the proxy; a statement may take 1 s, and the client waits 0.5 s more."""
    role = f"{postgres_database.url.database}_tcp"
    url = postgres_database.url.set(host="127.0.0.1", port=proxy.port, username=role, password="helix")
    with postgres_database.write() as c:
        c.execute(text(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'helix'"))
    database = Database(url.render_as_string(hide_password=False), QUICK)
    yield database
    database.dispose()
    with postgres_database.write() as c:
        c.execute(text(f"DROP ROLE {role}"))


pytestmark = pytest.mark.postgres


def test_a_connection_that_goes_dead_in_mid_transaction_is_given_up(through_proxy, proxy):
    with pytest.raises(DatabaseUnreachableError, match="no answer for 2 s"), through_proxy.write() as c:  # noqa: PT012  (it dies in mid-transaction)
        c.execute(text("SELECT 1"))
        assert proxy.go_dead() == 1
        c.execute(text("SELECT 1"))
    ping(through_proxy)


def test_a_commit_that_nobody_answers_is_given_up(through_proxy, proxy):
    with pytest.raises(DatabaseUnreachableError, match="no answer"), through_proxy.write() as c:  # noqa: PT012  (it dies before the commit)
        c.execute(text("SELECT 1"))
        proxy.go_dead()
    ping(through_proxy)


def test_idle_connections_that_went_dead_cost_one_ping(through_proxy, proxy):
    gate = threading.Barrier(3)

    def hold():
        with through_proxy.read():
            gate.wait(10)

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.go_dead() == 3
    ping(through_proxy)
    ping(through_proxy)


def test_a_writer_goes_on_when_its_connection_goes_dead(through_proxy, proxy):
    writer = GroupCommitWriter(through_proxy)
    began = threading.Event()

    def operation(c):
        if not began.is_set():
            proxy.go_dead()
            began.set()
        return c.execute(text("SELECT 7")).scalar_one()

    assert writer.submit(operation).result(30) == 7
    assert writer.close(20)


def test_the_server_cancels_what_takes_too_long_and_the_connection_lives(through_proxy):
    with pytest.raises(DatabaseUnreachableError, match="statement timeout"), through_proxy.write() as c:
        c.execute(text("SELECT pg_sleep(20)"))
    ping(through_proxy)


def test_work_without_a_limit_is_not_cut_off(through_proxy):
    through_proxy.transact(lambda c: c.execute(text("SELECT pg_sleep(1.8)")), unlimited=True)
    closed = []
    meanwhile = threading.Timer(0.9, lambda: closed.append(through_proxy.calls.close_overdue(0.0)))
    with through_proxy.read(unlimited=True) as c:
        meanwhile.start()
        c.execute(text("SELECT pg_sleep(1.8)"))
    meanwhile.join(20)
    assert closed == [0]
    with through_proxy.write() as c:
        assert c.execute(text("SHOW statement_timeout")).scalar_one() == "1s"


def test_the_removal_of_a_large_submission_is_not_cut_off(postgres_database, tmp_path):
    url = postgres_database.url.render_as_string(hide_password=False)
    # To remove six jobs takes 1.8 s, and an answer of the usual kind may take 1.5 s.
    batches = [stored_batch(postgres_database, 6, seal=False)[0] for _ in range(2)]
    with postgres_database.write() as c:
        c.execute(
            text(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(0.3); RETURN OLD; END $$"
            )
        )
        c.execute(text("CREATE TRIGGER slow BEFORE DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION slow()"))
    try:
        with HelixClient(Settings(home=tmp_path, redis_url=None, database_url=url), time_limits=QUICK) as client:
            assert client.discard(batches[0])
            assert client.cancel(batches[1]) == 0
            assert client.list() == []
    finally:
        with postgres_database.write() as c:
            c.execute(text("DROP FUNCTION slow CASCADE"))


def test_limits_end_with_their_transaction(through_proxy):
    """A pooler may give the session to anybody next."""
    with through_proxy.write() as c:
        pool = c.engine
    raw = pool.raw_connection()
    found = [
        raw.cursor().execute(f"SHOW {name}").fetchone()[0]
        for name in ("statement_timeout", "idle_in_transaction_session_timeout")
    ]
    raw.close()
    assert found == ["0", "0"]


def test_nothing_is_prepared(through_proxy):
    with through_proxy.write() as c:
        for number in range(12):
            c.execute(text("SELECT CAST(:number AS integer)"), {"number": number})
        assert c.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0


def test_the_sockets_of_overdue_calls_are_shut_and_others_left_alone():
    now = [0.0]
    calls = CallsInFlight(lambda: now[0])
    pairs = [socket.socketpair() for _ in range(3)]
    with (
        calls.note(pairs[0][0].fileno(), 10.0),
        calls.note(pairs[1][0].fileno(), 100.0),
        calls.note(pairs[2][0].fileno(), None),
    ):
        assert calls.close_overdue(60.0) == 0
        now[0] = 61.0
        assert calls.close_overdue(61.5) == 0
        assert calls.close_overdue(61.0) == 1
    assert pairs[0][1].recv(1) == b"", "its peer sees the end"
    for near, far in pairs[1:]:
        near.sendall(b"x")
        assert far.recv(1) == b"x"
    now[0] = 1000.0
    assert calls.close_overdue(60.0) == 0
    for near, far in pairs:
        near.close()
        far.close()


def test_a_thread_that_waits_gets_an_error_when_its_call_is_ended(through_proxy, proxy):
    through_proxy.time_limits = replace(QUICK, statement=30.0)
    errors = []

    def ask():
        try:
            with through_proxy.write() as c:
                proxy.go_dead()
                c.execute(text("SELECT 1"))
        except DatabaseUnreachableError as error:
            errors.append(str(error))

    def is_told():
        """Do what the switch does, with a limit that stands for a minute."""
        through_proxy.calls._calls.update(
            {key: type(call)(call.began, call.descriptor, 0.0) for key, call in through_proxy.calls._calls.items()}
        )
        through_proxy.calls.close_overdue(0.5)
        return errors

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(is_told, "it waits on")
    thread.join(20)
    ping(through_proxy)
