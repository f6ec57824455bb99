"""The recorder tells everybody once what became of the entries, whatever the database and whoever is told do."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from regstat_lib.batch import Batch
from regstat_lib.envelope import SetAside
from regstat_lib.recorder import Outcome, Recorder
from regstat_lib.store import StoreError, Unavailable

ENTRY = SetAside("a reason", "{}")


class FakeDatabase:
    """Database and session in one: commits while `may_commit` is set, and fails when there is a `failure`."""

    description = "test's database"
    alternative = ""

    def __init__(self, writers: int) -> None:
        self.writers = writers
        self.may_commit = threading.Event()
        self.may_commit.set()
        self.entered = threading.Event()
        self.failure: StoreError | None = None

    def connect(self) -> FakeDatabase:
        self._fail()
        return self

    def record(self, _batch: Batch, _now: str) -> None:
        self.entered.set()
        assert self.may_commit.wait(30)
        self._fail()

    def purge(self, *_: Any) -> int:
        return 0

    def close(self) -> None:
        pass

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.fixture(params=[1, 2], ids=["one writer", "two writers"])
def database(request: pytest.FixtureRequest) -> FakeDatabase:
    return FakeDatabase(request.param)


@pytest.fixture
def recorder(database: FakeDatabase) -> Iterator[Recorder]:
    recorder = Recorder(
        database,  # type: ignore[arg-type]
        utc_now=lambda: "2026-01-01 00:00:00.000000",
        utc_before=lambda _: "2025-01-01 00:00:00.000000",
    )
    recorder.start()
    recorder.await_first_attempt(10)
    yield recorder
    database.may_commit.set()
    assert recorder.stop(10)


class Told:
    """What settles told, in their order."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[Outcome | StoreError] = queue.SimpleQueue()
        self.settle = self._told.put

    def next(self) -> Outcome | StoreError:
        return self._told.get(timeout=10)

    def nothing_more(self) -> bool:
        return self._told.empty()


def test_everybody_is_told_once_and_only_after_the_commit(recorder: Recorder, database: FakeDatabase) -> None:
    told = Told()
    database.may_commit.clear()
    for count in range(1, 100):
        recorder.enqueue([ENTRY] * count, told.settle)
    assert database.entered.wait(10)
    assert told.nothing_more()
    database.may_commit.set()
    outcomes = [told.next() for _ in range(1, 100)]
    assert sorted(outcomes) == [Outcome(0, count) for count in range(1, 100)]  # type: ignore[type-var]
    assert recorder.submit([ENTRY]) == Outcome(0, 1)
    assert told.nothing_more()


def test_what_goes_wrong_where_one_is_told_is_nothing_to_the_others(
    recorder: Recorder, database: FakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ValueError("of whoever asked")

    told = Told()
    database.may_commit.clear()
    for settle in (fail, told.settle, fail, told.settle):
        recorder.enqueue([ENTRY], settle)
    database.may_commit.set()
    assert [told.next(), told.next()] == [Outcome(0, 1)] * 2
    assert recorder.submit([ENTRY]) == Outcome(0, 1)
    assert "of whoever asked" in caplog.text


def test_who_waits_when_the_database_goes_is_told_and_who_comes_then_is_refused(
    recorder: Recorder, database: FakeDatabase
) -> None:
    told = Told()
    database.may_commit.clear()
    for _ in range(10):
        recorder.enqueue([ENTRY], told.settle)
    assert database.entered.wait(10)
    database.failure = Unavailable("It went away.")
    database.may_commit.set()
    assert [str(told.next()) for _ in range(10)] == ["It went away."] * 10
    with pytest.raises(Unavailable, match="It went away"):
        recorder.enqueue([ENTRY], told.settle)
    assert told.nothing_more()


def test_refusing_for_long_holds_on_to_nothing(recorder: Recorder, database: FakeDatabase) -> None:
    database.failure = Unavailable("It went away.")
    with pytest.raises(Unavailable):
        recorder.submit([ENTRY])
    refused: Unavailable | None = None
    for _ in range(100):
        try:
            recorder.enqueue([ENTRY], lambda _: None)
        except Unavailable as error:
            refused = error
    assert refused is not None
    assert len(traceback.extract_tb(refused.__traceback__)) < 10


def test_who_waits_himself_does_not_wait_for_ever(recorder: Recorder, database: FakeDatabase) -> None:
    database.may_commit.clear()
    with pytest.raises(Unavailable, match=r"within 0\.05 seconds"):
        recorder.submit([ENTRY], timeout=0.05)
    database.may_commit.set()
    assert recorder.submit([ENTRY]) == Outcome(0, 1)


def test_what_was_accepted_is_committed_at_the_end_and_nothing_is_accepted_then(
    recorder: Recorder, database: FakeDatabase
) -> None:
    told = Told()
    database.may_commit.clear()
    for _ in range(10):
        recorder.enqueue([ENTRY], told.settle)
    assert database.entered.wait(10)
    ending = threading.Thread(target=recorder.stop, args=(10,))
    ending.start()
    database.may_commit.set()
    ending.join()
    assert [told.next() for _ in range(10)] == [Outcome(0, 1)] * 10
    with pytest.raises(Unavailable, match="stopping"):
        recorder.enqueue([ENTRY], told.settle)
    assert told.nothing_more()
