"""The ledger over a login: verified here, and compared with the head that was kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.api.remote_ledger import RemoteLedger
from fedlearn.errors import LedgerError
from fedlearn.identity.login import LEDGER_HEAD, OperatorLogin
from fedlearn.wire.operator import OperatorClient
from fedlearn.wire.results import EntryRow, LedgerState
from server.identity.pki import CertificateAuthority
from server.ledger import LEDGER_FILE, Ledger, LedgerHead
from tests.harness.deployment import TRUST_DOMAIN, key_pem
from tests.harness.listeners import DeploymentListeners


@pytest.fixture
def login(listeners: DeploymentListeners, tmp_path: Path) -> OperatorLogin:
    chain, key = listeners.deployment.operator()
    made = OperatorLogin(
        address=listeners.control,
        ca=listeners.deployment.ca.certificate_pem,
        chain=chain,
        key=key_pem(key),
    )
    made.save(tmp_path / "login")
    return made


@pytest.fixture
def client(login: OperatorLogin) -> Iterator[OperatorClient]:
    with OperatorClient(
        address=login.address, ca=login.ca, chain=login.chain, key=login.key
    ) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "login"


def remote(client: OperatorClient, login: OperatorLogin, folder: Path) -> RemoteLedger:
    return RemoteLedger(client, login, folder)


class Dishonest:
    """A coordinator that shows what a test wants, with the true key and its certificate."""

    def __init__(self, ca: CertificateAuthority, ledger: Ledger) -> None:
        self.ca = ca
        self.shown = list(rows_of(ledger))
        self.rows: list[EntryRow] | None = None
        """What it sends in place of what its head states."""
        self.public_key = ledger.public_key

    def ledger_state(self) -> LedgerState:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        sequence, time, _, _, _, digest, signature = self.shown[-1]
        return LedgerState(
            sequence=sequence,
            time=time,
            hash=digest,
            signature=signature,
            public_key=key,
            key_signature=self.ca.sign_ledger_key(key),
        )

    def read_ledger(self, *, after: int = 0, kind: str = "", limit: int = 0) -> Iterator[EntryRow]:
        yield from [row for row in self.rows or self.shown if row[0] > after]


def rows_of(ledger: Ledger) -> Iterator[EntryRow]:
    with ledger.snapshot() as connection:
        yield from connection.execute(
            "SELECT sequence, time, kind, body, previous, hash, signature FROM entry "
            "ORDER BY sequence"
        )


def fill(ledger: Ledger, count: int = 5) -> None:
    for number in range(count):
        ledger.append("round", {"job": "heart", "round": number, "phase": "started"})


def test_a_whole_ledger_is_verified_and_its_head_kept(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    fill(listeners.ledger)
    found = remote(client, login, folder).verify()
    assert (found.entries, found.head, found.head_checked) == (6, whole_head(listeners), False)
    assert LedgerHead.parse((folder / LEDGER_HEAD).read_bytes()) == found.head
    fill(listeners.ledger)
    again = remote(client, login, folder).verify(expect_head=found.head)
    assert (again.entries, again.head_checked) == (11, True)
    assert remote(client, login, folder).head() == again.head == whole_head(listeners)
    with pytest.raises(LedgerError, match=r"entry 12: missing; .* of the given head"):
        remote(client, login, folder).verify(expect_head=LedgerHead(sequence=99, hash=bytes(32)))


def whole_head(listeners: DeploymentListeners) -> LedgerHead:
    last = list(listeners.ledger.entries())[-1]
    return LedgerHead.of(last)


def test_the_head_is_read_without_the_whole_ledger(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    fill(listeners.ledger)
    assert remote(client, login, folder).head() == whole_head(listeners)
    fill(listeners.ledger)
    asked: list[int] = []
    read = client.read_ledger

    def counted(**request: int) -> Iterator[EntryRow]:
        asked.append(request["after"])
        return read(**request)  # type: ignore[arg-type]

    client.read_ledger = counted  # type: ignore[assignment, method-assign]
    assert remote(client, login, folder).head() == whole_head(listeners)
    assert asked == [6]


def test_entries_and_contributions_are_those_of_the_disk(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    ledger = listeners.ledger
    fill(ledger, 1)
    ledger.append("update", {"job": "heart", "round": 0, "site": "a", "key_thumbprint": "aa",
                             "digest": "dd", "examples": 3, "accepted": True})  # fmt: skip
    ledger.append("round", {"job": "heart", "round": 0, "phase": "finished"})
    ledger.append("checkpoint", {"job": "heart", "round": 0, "version": 1})
    found = remote(client, login, folder)
    assert list(found.entries()) == list(ledger.entries())
    assert list(found.entries(2, "update", 5)) == list(ledger.entries(2, "update", 5))
    assert found.contributions("heart", version=1) == ledger.contributions("heart", version=1)
    with pytest.raises(LedgerError, match="no finished round"):
        found.contributions("lung")


def test_another_ca_does_not_vouch_for_the_key(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    other = CertificateAuthority.create(TRUST_DOMAIN, listeners.deployment.clock())
    theirs = Dishonest(other, listeners.ledger)
    for call in ("verify", "head"):
        with pytest.raises(LedgerError, match="did not sign the key of the ledger"):
            getattr(RemoteLedger(theirs, login, folder), call)()  # type: ignore[arg-type]
    assert not (folder / LEDGER_HEAD).exists()


def test_an_older_ledger_than_was_seen_before_is_named(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    fill(listeners.ledger)
    remote(client, login, folder).verify()
    shorter = Dishonest(listeners.deployment.ca, listeners.ledger)
    del shorter.shown[4:]
    for call in ("verify", "head"):
        message = r"entry 5: missing; the ledger ends before entry 6 of the head that this login"
        with pytest.raises(LedgerError, match=message) as caught:
            getattr(RemoteLedger(shorter, login, folder), call)()  # type: ignore[arg-type]
        assert "older copy of the coordinator's state" in caught.value.hint
    assert LedgerHead.parse((folder / LEDGER_HEAD).read_bytes()).sequence == 6


def test_another_history_than_was_seen_before_is_named(
    listeners: DeploymentListeners,
    client: OperatorClient,
    login: OperatorLogin,
    folder: Path,
    tmp_path: Path,
) -> None:
    """The coordinator itself, with its own key, wrote two ledgers."""
    fill(listeners.ledger)
    remote(client, login, folder).verify()
    (tmp_path / "fork").mkdir()
    with Ledger.open(tmp_path / "fork" / LEDGER_FILE, listeners.ledger._signer) as fork:
        fill(fork, 9)
        other = Dishonest(listeners.deployment.ca, fork)
        with pytest.raises(LedgerError, match="entry 6: not the one that the head that this login"):
            RemoteLedger(other, login, folder).verify()  # type: ignore[arg-type]
        with pytest.raises(LedgerError, match="entry 7: it does not follow entry 6") as caught:
            RemoteLedger(other, login, folder).head()  # type: ignore[arg-type]
        assert caught.value.entry == 7
        del other.shown[6:]
        with pytest.raises(LedgerError, match="entry 6: not the one"):
            RemoteLedger(other, login, folder).head()  # type: ignore[arg-type]


def test_an_entry_that_was_altered_or_left_out_is_named(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    fill(listeners.ledger)
    rows = list(rows_of(listeners.ledger))
    altered = (rows[2][0], 7, *rows[2][2:])
    unsigned = (*rows[2][:6], bytes(64))
    for shown, why in (
        ([*rows[:3], *rows[4:]], r"entry 4: missing"),
        (rows[:5], r"entry 6: missing; .* the head that the coordinator signed"),
        ([*rows[:3], *rows[2:]], r"entry 3: occurs twice"),
        ([*rows[:2], altered, *rows[3:]], r"entry 3: altered"),
        ([*rows[:2], unsigned, *rows[3:]], r"entry 3: the signature"),
        ([(2**63, *rows[0][1:]), *rows[1:]], r"entry 1: its sequence"),
    ):
        theirs = Dishonest(listeners.deployment.ca, listeners.ledger)
        theirs.rows = shown
        with pytest.raises(LedgerError, match=why):
            RemoteLedger(theirs, login, folder).verify()  # type: ignore[arg-type]
    assert not (folder / LEDGER_HEAD).exists()


def test_a_head_that_cannot_be_kept_or_read_is_reported(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    found = RemoteLedger(client, login, folder / "nowhere")
    assert found.verify().entries == 1
    assert "could not be kept" in found.unkept
    (folder / LEDGER_HEAD).write_text("{}")
    with pytest.raises(LedgerError, match=LEDGER_HEAD):
        remote(client, login, folder).verify()


def test_an_empty_ledger_has_no_head(login: OperatorLogin, folder: Path, tmp_path: Path) -> None:
    state = LedgerState(
        sequence=0, time=0, hash=b"", signature=b"", public_key=b"", key_signature=b""
    )

    class Empty:
        def ledger_state(self) -> LedgerState:
            return state

    assert RemoteLedger(Empty(), login, folder).head() is None  # type: ignore[arg-type]


def test_a_renewed_login_keeps_the_head(
    listeners: DeploymentListeners, client: OperatorClient, login: OperatorLogin, folder: Path
) -> None:
    head = remote(client, login, folder).verify().head
    chain, key = listeners.deployment.operator("bob")
    OperatorLogin(address=login.address, ca=login.ca, chain=chain, key=key_pem(key)).replace_folder(
        folder
    )
    assert LedgerHead.parse((folder / LEDGER_HEAD).read_bytes()) == head
