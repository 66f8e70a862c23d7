"""Ledger and store are of one state: whoever puts an older or another one in place is found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attestation.config import dumps
from fedlearn.cli import main
from fedlearn.errors import ConfigError, FedlearnError, LedgerError, StoreError
from server.adoption import adopt
from server.config import ServerConfig
from server.identity.pki import CertificateAuthority
from server.keys.key_protectors import InsecurePlainKeyFile
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE
from server.ledger.log import Ledger
from server.state_directory import StateDirectory, initialize
from server.store.head_file import HEAD_FILE
from server.store.models import ModelStore
from server.store.state_binding import compare_bound, open_bound
from tests.harness.bound_state import bound_state

WEIGHTS = {"w": np.arange(6, dtype=np.float32)}


@pytest.fixture
def settings(tmp_path: Path) -> ServerConfig:
    """A coordinator that was initialized, and wrote a model and a few entries."""
    (tmp_path / "server.toml").write_text(
        dumps(
            {
                "state": "state",
                "trust_domain": "test.example",
                "keys": {"protect": ["insecure-plain-key-file"]},
            }
        )
    )
    made = ServerConfig.load(tmp_path / "server.toml")
    initialize(made, now=datetime.now(UTC), control_address="127.0.0.1:1", operator_csr=None)
    with StateDirectory.open(made) as directory:
        directory.store.write("demo", WEIGHTS, round=1)
        directory.ledger.append("exclusion", {"job": "demo", "change": "over"})
    return made


def later(settings: ServerConfig) -> None:
    """What happens on the day after a copy was taken."""
    with StateDirectory.open(settings) as directory:
        directory.ledger.append("operator", {"change": "revoked"})
        directory.store.write("demo", WEIGHTS, round=2)
        directory.ledger.append("operator", {"change": "revoked"})


def copied(settings: ServerConfig, name: str) -> Path:
    """Copy the state as it is now."""
    copy = settings.state.with_name(name)
    shutil.copytree(settings.state, copy)
    return copy


def put(settings: ServerConfig, copy: Path, *names: str) -> None:
    """Put files or folders of a copy in the place of what is there."""
    for name in names:
        target = settings.state / name
        for path in (target, *(target.with_name(target.name + s) for s in ("-wal", "-shm"))):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        source = copy / name
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            target.write_bytes(source.read_bytes())


def commands(
    capsys: pytest.CaptureFixture[str], settings: ServerConfig
) -> dict[str, tuple[int, str]]:
    """The output of the two commands that verify, and their status."""
    reported = {}
    words = ("verify", "--state", settings.state, "--insecure-plain-key-file")
    for group in ("ledger", "model"):
        with pytest.raises(SystemExit) as caught:
            main([group, *map(str, words)])
        found = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        assert "Traceback" not in found.err
        reported[group] = (caught.value.code, found.err + found.out)
    return reported


def test_an_untouched_state_opens_and_is_called_intact(
    settings: ServerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    later(settings)
    for code, text in commands(capsys, settings).values():
        assert code == 0
        assert "intact" in text
    with StateDirectory.open(settings) as directory:
        # Beside a running coordinator too.
        directory.ledger.append("operator", {"change": "revoked"})
        assert [code for code, _ in commands(capsys, settings).values()] == [0, 0]


def test_a_coordinator_that_writes_all_the_time_is_no_rollback(settings: ServerConfig) -> None:
    """What is compared is read one after the other, while both grow."""
    with StateDirectory.open(settings) as directory:
        over = threading.Event()
        written = [0, 0]

        def append() -> None:
            while not over.is_set():
                directory.ledger.append("exclusion", {"job": "demo", "change": "over"})
                written[0] += 1

        def write() -> None:
            while not over.is_set():
                directory.store.write("demo", {"x": np.zeros(1)}, round=written[1])
                written[1] += 1

        threads = [threading.Thread(target=work) for work in (append, write)]
        for thread in threads:
            thread.start()
        try:
            while min(written) < 40:
                compare_bound(settings.state, directory.keys)
        finally:
            over.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize(
    ("names", "error", "reported"),
    [
        ([LEDGER_FILE], LedgerError, "missing; the store was sealed when the ledger had"),
        (["store"], StoreError, "is of entry"),
        (["store/catalogue.sealed"], StoreError, "the catalogue of the store was written"),
        ([f"store/{HEAD_FILE}"], StoreError, "is older than its catalogue"),
        ([LEDGER_FILE, f"store/{HEAD_FILE}"], StoreError, "is older than its catalogue"),
        ([LEDGER_FILE, "store/catalogue.sealed"], StoreError, "catalogue of the store was"),
        (["store/catalogue.sealed", f"store/{HEAD_FILE}"], StoreError, "is of entry"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_an_older_part_with_the_rest_of_today_is_refused(
    settings: ServerConfig,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    error: type[FedlearnError],
    reported: str,
) -> None:
    copy = copied(settings, "yesterday")
    later(settings)
    put(settings, copy, *names)
    before = {
        path: path.read_bytes() for path in (settings.state / "store").rglob("*") if path.is_file()
    }
    with pytest.raises(error, match=reported):
        StateDirectory.open(settings)
    for path, data in before.items():
        assert path.read_bytes() == data, "nothing is swept by an older catalogue"
    for command, (code, text) in commands(capsys, settings).items():
        assert code == 2, command
        assert "damaged" in text


def test_a_crash_before_the_head_explains_one_burst_and_no_entry_more(
    settings: ServerConfig,
) -> None:
    old, change = copied(settings, "old"), ("exclusion", {"job": "demo", "change": "over"})
    with StateDirectory.open(settings) as directory:
        directory.ledger.append_all([change] * 3)
    put(settings, old, f"store/{HEAD_FILE}")
    with StateDirectory.open(settings) as directory:
        time.sleep(0.01)  # the entries of one burst bear one time, and this one another
        directory.ledger.append(*change)
    put(settings, old, f"store/{HEAD_FILE}")
    with pytest.raises(StoreError, match="is of entry"):
        StateDirectory.open(settings)


@pytest.mark.parametrize("entries", [1, 2, 3])
def test_a_cut_tail_is_refused_to_the_last_entry(
    settings: ServerConfig, capsys: pytest.CaptureFixture[str], entries: int
) -> None:
    later(settings)
    database = sqlite3.connect(settings.state / LEDGER_FILE)
    trigger = "entry_is_not_deleted"
    [[kept]] = database.execute("SELECT sql FROM sqlite_master WHERE name=?", (trigger,)).fetchall()
    [[last]] = database.execute("SELECT max(sequence) FROM entry").fetchall()
    database.execute(f"DROP TRIGGER {trigger}")
    database.execute("DELETE FROM entry WHERE sequence > ?", (last - entries,))
    database.execute(kept)
    database.commit()
    database.close()
    with pytest.raises(LedgerError, match="missing; the store was sealed") as caught:
        StateDirectory.open(settings)
    assert caught.value.entry == last - entries + 1
    assert [code for code, _ in commands(capsys, settings).values()] == [2, 2]


@pytest.mark.parametrize(
    ("name", "reported"),
    [
        (LEDGER_FILE, "there was one"),
        ("store/catalogue.sealed", "is missing"),
        (f"store/{HEAD_FILE}", "is missing"),
        ("store", "is missing"),
        ("keys/secrets/ledger-key.sealed", "lacks the secret 'ledger-key'"),
        ("keys/root.json", "no coordinator was initialized"),
    ],
)
def test_what_is_missing_is_not_made_anew(
    settings: ServerConfig, capsys: pytest.CaptureFixture[str], name: str, reported: str
) -> None:
    put(settings, settings.state.with_name("nothing"), name)
    left = sorted(settings.state.rglob("*"))
    for _ in range(2):
        with pytest.raises(FedlearnError, match=reported):
            StateDirectory.open(settings)
    made = {path.name for path in settings.state.rglob("*")} - {path.name for path in left}
    assert made <= {"models", "lock", "store", "ledger.sqlite.lock"}
    for code, _ in commands(capsys, settings).values():
        assert code != 0


def test_another_ledger_of_the_same_key_is_refused(
    settings: ServerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key is sealed; somebody who had the coordinator write in two copies has two ledgers."""
    copy = copied(settings, "other")
    other = ServerConfig.load(settings.state.with_name("server.toml"))
    later(settings)
    today = copied(settings, "today")
    put(settings, copy, LEDGER_FILE, "store", "keys")
    with StateDirectory.open(other) as directory:
        for _ in range(9):
            directory.ledger.append("exclusion", {"job": "demo", "change": "over"})
    put(settings, today, "store")
    with pytest.raises(LedgerError, match="another ledger"):
        StateDirectory.open(settings)
    assert [code for code, _ in commands(capsys, settings).values()] == [2, 2]


def test_a_state_that_was_never_bound_states_what_to_do(settings: ServerConfig) -> None:
    """A version before the mark, or an initialization that was interrupted."""
    keys = KeyService.open(
        settings.state / "keys",
        [InsecurePlainKeyFile(settings.state / "keys")],
        allow_insecure_key_file=True,
    )
    for path in (settings.state / "store").rglob("*.sealed"):
        path.unlink()
    shutil.rmtree(settings.state / "store")
    ModelStore.open(settings.state / "store", keys).close()
    with pytest.raises(StoreError, match="not marked as that of an initialized") as caught:
        StateDirectory.open(settings)
    assert "export its models with that version" in caught.value.hint


def test_a_catalogue_that_has_the_key_of_small_values_is_read(settings: ServerConfig) -> None:
    with StateDirectory.open(settings) as directory:
        path = settings.state / "store" / "catalogue.sealed"
        now = json.loads(directory.keys.root.read(path, "catalogue", limit=1 << 20) or b"")
        older = json.dumps({**now, "blobs": {}}).encode()
        directory.keys.root.write(path, "catalogue", older)
    with StateDirectory.open(settings) as directory:
        directory.store.write("demo", {"x": np.zeros(1)}, round=0)
        assert b"blobs" not in (
            directory.keys.root.read(path, "catalogue", limit=1 << 20) or b"blobs"
        )


def test_a_catalogue_of_a_newer_version_states_it(settings: ServerConfig) -> None:
    with StateDirectory.open(settings) as directory:
        newer = b'{"models": {}, "shards": 3}'
        directory.keys.root.write(settings.state / "store" / "catalogue.sealed", "catalogue", newer)
    with pytest.raises(StoreError, match="not a catalogue that this version can read"):
        StateDirectory.open(settings)


class Counter:
    """A monotonic counter that is not on the disk, as a TPM has one."""

    def __init__(self) -> None:
        self.value = 3

    def create(self) -> int:
        return self.value

    def increment(self) -> int:
        self.value += 1
        return self.value


def test_a_counter_vouches_for_the_ledger_too(tmp_path: Path) -> None:
    """Ledger and store put back together are found, also where only the ledger had grown."""
    keys = KeyService.create(
        tmp_path / "state" / "keys",
        [InsecurePlainKeyFile(tmp_path / "state" / "keys")],
        allow_insecure_key_file=True,
    )
    with bound_state(tmp_path / "state", keys):
        pass
    ca = CertificateAuthority.create("test.example", datetime.now(UTC))
    keys.keep("ca-key", ca.private_bytes())
    (tmp_path / "state" / "ca.pem").write_bytes(ca.certificate_pem)
    counter = Counter()
    with ModelStore.open(
        tmp_path / "state" / "store", keys, counter=counter, adopt_counter=True
    ) as store:
        store.write("bind", {"x": np.zeros(1)}, round=0)
    with open_bound(tmp_path / "state", keys, counter=counter) as (ledger, _):
        ledger.append("operator", {"change": "added"})
    shutil.copytree(tmp_path / "state", tmp_path / "yesterday")
    with open_bound(tmp_path / "state", keys, counter=counter) as (ledger, _):
        ledger.append("operator", {"change": "revoked"})
    for _ in range(2):
        with open_bound(tmp_path / "state", keys, counter=counter):
            pass
    for name in ("store", LEDGER_FILE):
        target = tmp_path / "state" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        source = tmp_path / "yesterday" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    with pytest.raises(StoreError, match="rolled back: the store was written at count"):
        with open_bound(tmp_path / "state", keys, counter=counter):
            pass


# --- an older state that is all that is left -------------------------------------------


@pytest.mark.parametrize(
    "names", [[LEDGER_FILE], ["store"], ["store/catalogue.sealed"]], ids=lambda names: names[0]
)
def test_an_operator_may_adopt_what_is_left_and_the_ledger_states_it(
    settings: ServerConfig, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    copy = copied(settings, "yesterday")
    later(settings)
    put(settings, copy, *names)
    if names == ["store/catalogue.sealed"]:
        # The older catalogue names a file that pruning may have removed, but none was pruned here.
        assert len(list((settings.state / "store" / "models").iterdir())) == 2
    with pytest.raises(FedlearnError) as refused:
        StateDirectory.open(settings)
    toml = str(settings.state.with_name("server.toml"))
    assert "fedlearn-server adopt" in refused.value.hint
    done = server_main(capsys, "adopt", "--config", toml, "--json")
    assert done["disagreement"] == str(refused.value)
    with StateDirectory.open(settings) as directory:
        [entry] = directory.ledger.entries(kind="state")
        assert entry.body["change"] == "adopted"
        assert entry.body["disagreement"] == done["disagreement"]
        assert entry.body["head"] == done["head"]
        directory.store.write("demo", WEIGHTS, round=3)
    StateDirectory.open(settings).close()
    assert [code for code, _ in commands(capsys, settings).values()] == [0, 0]


def test_nothing_is_adopted_that_is_whole_or_damaged(
    settings: ServerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="nothing to adopt"):
        adopt(settings)
    copy = copied(settings, "yesterday")
    later(settings)
    put(settings, copy, LEDGER_FILE)
    newest = max((settings.state / "store" / "models").iterdir())
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="demo, version 2"):
        adopt(settings)
    newest.write_bytes(whole)
    (settings.state / LEDGER_FILE).unlink()
    with pytest.raises(LedgerError, match="there was one"):
        adopt(settings)
    with pytest.raises(FedlearnError):
        StateDirectory.open(settings)


def server_main(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    from server.main import main as server_command

    with pytest.raises(SystemExit) as caught:
        server_command(list(words))
    out = capsys.readouterr().out
    assert caught.value.code in (0, None), out
    found: dict[str, Any] = json.loads(out)
    return found


# --- crashes --------------------------------------------------------------------------


def _steps(kill_at: int) -> Callable[[], None]:
    """Return what counts the steps of a write, and kills this process at one of them."""
    count = 0

    def step() -> None:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    return step


def _killed(work: Callable[[], None], kill_at: int) -> bool:
    """Do ``work`` in a child that is killed at a step; return whether it was."""
    child = os.fork()
    if child == 0:
        step = _steps(kill_at)

        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: object, **options: object) -> Any:
                step()
                done = function(*args, **options)
                step()
                return done

            return counted

        for name in ("fsync", "replace", "rename", "unlink", "open", "link"):
            setattr(os, name, around(getattr(os, name)))
        Ledger._insert = around(Ledger._insert)  # type: ignore[method-assign]
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def test_a_kill_at_any_step_leaves_a_state_that_opens(
    settings: ServerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an entry, of a model, of opening and closing: what was reported is there."""
    kept = copied(settings, "kept")
    shutil.rmtree(settings.state)
    steps = 0
    for step in range(1000):
        shutil.copytree(kept, settings.state)
        if not _killed(lambda: later(settings), step):
            break
        steps += 1
        with StateDirectory.open(settings) as directory:
            entries = list(directory.ledger.entries())
            written = [e.body["version"] for e in entries if e.kind == "checkpoint"]
            versions = [stored.version for stored in directory.store.versions("demo")]
            # A version may be sealed before the ledger names it, never the other way.
            assert set(written) <= set(versions)
            directory.store.verify("demo")
            directory.ledger.append("operator", {"change": "revoked"})
        assert [code for code, _ in commands(capsys, settings).values()] == [0, 0]
        shutil.rmtree(settings.state)
    assert steps > 40


def test_a_kill_while_initializing_is_distinguished_from_an_initialized_state(
    settings: ServerConfig,
) -> None:
    shutil.rmtree(settings.state)
    outcomes, hints = set(), []
    for step in range(0, 1000, 3):

        def work() -> None:
            now = datetime.now(UTC)
            initialize(settings, now=now, control_address="127.0.0.1:1", operator_csr=None)

        killed = _killed(work, step)
        try:
            StateDirectory.open(settings).close()
        except FedlearnError as error:
            hints.append(error.hint)
            outcomes.add(type(error).__name__)
        else:
            outcomes.add("opened")
        shutil.rmtree(settings.state, ignore_errors=True)
        if not killed:
            break
    assert {"ConfigError", "StoreError", "opened"} <= outcomes
    assert all(hints)
