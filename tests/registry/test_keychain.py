"""The operator's credentials: a file that changes under our eyes, and helpers that may hang."""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regstat_lib.registry import ANONYMOUS, Keychain, KeychainError
from regstat_lib.registry.credentials import IdentityToken, UserPassword

SECRET = "s3cr3t-Value"


def write_config(path: Path, password: str, host: str = "hub.example") -> None:
    """As editors and orchestrators do: a new file in the place of the old."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"auths": {host: {"username": "reader", "password": password}}}))
    fresh.replace(path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Path) -> Path:
    """A credential helper whose script a test writes; every registry's credentials are asked of it."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    config.write_text(json.dumps({"credsStore": "test"}))
    return tmp_path / "docker-credential-test"


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_without_a_file_everything_is_anonymous() -> None:
    assert ANONYMOUS.find("hub.example").credentials is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "config.json cannot be read: No such file or directory"),
        (b"{,}", "config.json cannot be used: line 1 column 2"),
        (b"[]", "config.json cannot be used: expected an object"),
        (b'{"auths": {"hub": 1}}', 'config.json cannot be used: auths["hub"]: expected an object'),
        (b'{"auths": "\xff"}', "config.json is not UTF-8 at byte 11"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_start(config: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(KeychainError) as error:
        Keychain.from_file(config, {})
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_in_place_of_the_file_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(KeychainError, match="cannot be read: Is a directory"):
        Keychain.from_file(tmp_path, {})


def test_equivalent_registries_share_their_credentials(config: Path) -> None:
    write_config(config, "one", host="alias:5000")
    keychain = Keychain.from_file(config, {"alias:5000": "hub.example", "other": "hub.example"})
    for name in ("hub.example", "alias:5000", "other", "HUB.example"):
        assert keychain.find(name).credentials == UserPassword("reader", "one")
    assert keychain.find("hub.example:5000").credentials is None


def test_a_password_changed_in_the_file_is_used_without_a_restart(config: Path) -> None:
    write_config(config, "one")
    keychain = Keychain.from_file(config, {})
    for password in ("two", "six", "ten"):
        write_config(config, password)
        assert keychain.find("hub.example").credentials == UserPassword("reader", password)


def test_a_file_that_becomes_malformed_leaves_the_old_credentials_in_use_and_says_so_once(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_config(config, SECRET)
    keychain = Keychain.from_file(config, {})
    config.write_text('{"auths": {"hub.example": {"username": "reader", "password": "' + SECRET)
    for _ in range(3):
        assert keychain.find("hub.example").credentials == UserPassword("reader", SECRET)
    config.unlink()
    for _ in range(3):
        assert keychain.find("hub.example").credentials == UserPassword("reader", SECRET)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 2
    assert "line 1" in messages[0]
    assert "No such file" in messages[1]
    assert SECRET not in caplog.text
    write_config(config, "two")
    assert keychain.find("hub.example").credentials == UserPassword("reader", "two")


def test_a_helper_is_asked_for_the_registry(config: Path, helper: Path) -> None:
    script(helper, 'test "$1" = get && read server; echo "{\\"Username\\": \\"u\\", \\"Secret\\": \\"for $server\\"}"')
    assert Keychain.from_file(config, {}).find("hub.example").credentials == UserPassword("u", "for hub.example")


def test_a_helper_can_give_an_identity_token(config: Path, helper: Path) -> None:
    script(helper, """echo '{"Username": "<token>", "Secret": "refresh-me"}'""")
    assert Keychain.from_file(config, {}).find("hub.example").credentials == IdentityToken("refresh-me")


def test_a_helper_that_has_nothing_leaves_it_to_the_file(config: Path, helper: Path) -> None:
    script(helper, "echo credentials not found in native keychain; exit 1")
    auth = base64.b64encode(b"reader:one").decode()
    config.write_text(json.dumps({"credsStore": "test", "auths": {"hub.example": {"auth": auth}}}))
    keychain = Keychain.from_file(config, {})
    assert keychain.find("hub.example").credentials == UserPassword("reader", "one")
    assert keychain.find("other.example").credentials is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"echo {SECRET}; echo {SECRET} >&2; exit 3", "docker-credential-test failed with exit status 3"),
        (f"echo {SECRET}", "did not answer with JSON that has Username and Secret"),
        (f"""echo '{{"Username": "{SECRET}"}}'""", "did not answer with JSON that has Username and Secret"),
        (f"""echo '{{"Username": 1, "Secret": "{SECRET}"}}'""", "with a Username or Secret that is no string"),
        ("while echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; do :; done", "answered more than 65536 bytes"),
        ("exec </dev/null; kill -9 $$", "failed with exit status -9"),
    ],
)
def test_a_helper_that_fails_gives_no_credentials_and_its_output_is_not_repeated(
    config: Path, helper: Path, caplog: pytest.LogCaptureFixture, text: str, complaint: str
) -> None:
    script(helper, text)
    entry = Keychain.from_file(config, {}).find("hub.example")
    assert entry.credentials is None
    assert complaint in entry.origin
    assert complaint in caplog.text
    assert SECRET not in caplog.text + entry.origin


def test_a_helper_that_is_not_there_gives_no_credentials(config: Path, helper: Path) -> None:
    assert not helper.exists()
    entry = Keychain.from_file(config, {}).find("hub.example")
    assert entry.credentials is None
    assert "docker-credential-test cannot be run: No such file or directory" in entry.origin


@pytest.mark.parametrize("last", ["wait", "exit 0"], ids=["it hangs itself", "it leaves behind what holds its output"])
def test_a_helper_that_hangs_is_stopped_with_all_it_started(
    config: Path, helper: Path, tmp_path: Path, last: str
) -> None:
    script(helper, f"sleep 600 &\necho $! > {tmp_path}/child\n{last}\n")
    started = time.monotonic()
    entry = Keychain(config, helper_timeout=0.5).find("hub.example")
    assert time.monotonic() - started < 5
    assert "did not answer within 0.5 s" in entry.origin
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while is_running(child):
        assert time.monotonic() < deadline, "what the helper started still runs"
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_run_of_a_helper_serves_all_that_wait_for_it(config: Path, helper: Path, tmp_path: Path) -> None:
    script(helper, f"""echo run >> {tmp_path}/runs; sleep 0.2; echo '{{"Username": "u", "Secret": "p"}}'""")
    keychain = Keychain.from_file(config, {})
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda _: keychain.find("hub.example"), range(50)))
    assert {entry.credentials for entry in entries} == {UserPassword("u", "p")}
    assert (tmp_path / "runs").read_text() == "run\n"


def test_a_helper_is_asked_again_when_its_answer_is_old_or_was_refused(
    config: Path, helper: Path, tmp_path: Path
) -> None:
    script(
        helper,
        f"echo run >> {tmp_path}/runs\n"
        f"""printf '{{"Username": "u", "Secret": "%s"}}' $(wc -l < {tmp_path}/runs)""",
    )
    now = [0.0]
    keychain = Keychain(config, clock=lambda: now[0])

    def password() -> str:
        credentials = keychain.find("hub.example").credentials
        assert isinstance(credentials, UserPassword)
        return credentials.password.strip()

    assert [password(), password()] == ["1", "1"]
    now[0] = 301
    assert [password(), password()] == ["2", "2"]
    keychain.doubt(UserPassword("u", "2"))
    assert [password(), password()] == ["3", "3"]


def test_a_helper_that_hangs_for_one_registry_does_not_hold_up_another(config: Path, helper: Path) -> None:
    script(
        helper, """read server; test "$server" = slow.example && sleep 600; echo '{"Username": "u", "Secret": "p"}'"""
    )
    keychain = Keychain(config, helper_timeout=3)
    slow = threading.Thread(target=keychain.find, args=("slow.example",))
    slow.start()
    assert keychain.find("fast.example").credentials == UserPassword("u", "p")
    assert slow.is_alive()
    slow.join()
