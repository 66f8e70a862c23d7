"""Sealed models and the ledger over an operator's calls, against real listeners."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlearn.errors import ConfigError, FedlearnError, JobError, LedgerError, Throttled
from fedlearn.identity.ledger_key import certified_ledger_key
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire.operator import OperatorClient
from server.identity.pki import CertificateAuthority
from server.rpc.results.models import ModelSender
from server.store.models import ModelStore
from tests.harness.deployment import TRUST_DOMAIN, key_pem
from tests.harness.listeners import DeploymentListeners

OWNER = X25519PrivateKey.generate()
OWNER_KEY = OWNER.public_key().public_bytes_raw()
BIG = {"w": np.arange(3_000_000, dtype=np.float32)}


def operator_client(listeners: DeploymentListeners, name: str = "alice") -> OperatorClient:
    chain, key = listeners.deployment.operator(name)
    ca = listeners.deployment.ca.certificate_pem
    return OperatorClient(address=listeners.control, ca=ca, chain=chain, key=key_pem(key))


@pytest.fixture
def operator(listeners: DeploymentListeners) -> Iterator[OperatorClient]:
    with operator_client(listeners) as client:
        yield client


def write(store: ModelStore, model: str = "heart", round_: int = 1, job: str = "") -> bytes:
    """Seal a version; return the bytes of its file."""
    stored = store.write(model, BIG, round=round_, recipients=(OWNER_KEY,), job=job)
    return stored.path.read_bytes()


def fetched(
    operator: OperatorClient, model: str, offset: int = 0, file_id: bytes = b"", version: int = 0
) -> tuple[int, bytes]:
    """Download; return where the data begin, and the data."""
    with operator.download_model(
        model, version=version, offset=offset, file_id=file_id
    ) as download:
        return download.offset, b"".join(download.chunks)


def test_models_are_listed_with_job_size_and_owner(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    assert operator.list_models() == ()
    one = write(listeners.store)
    two = write(listeners.store, round_=2)
    listeners.store.write("heart.files", BIG, round=2, job="heart")
    listeners.store.write("lung", BIG, round=9)
    found = operator.list_models()
    assert [(m.model, m.version, m.job, m.round) for m in found] == [
        ("heart", 1, "heart", 1),
        ("heart", 2, "heart", 2),
        ("heart.files", 1, "heart", 2),
        ("lung", 1, "lung", 9),
    ]
    assert [m.size for m in found[:2]] == [len(one), len(two)]
    assert [m.owners for m in found] == [(OWNER_KEY,), (OWNER_KEY,), (), ()]
    kept = listeners.store.versions("heart")
    assert [(m.digest, m.file_id) for m in found[:2]] == [(s.digest, s.file_id) for s in kept]
    assert [m.model for m in operator.list_models("heart")] == ["heart", "heart", "heart.files"]
    assert operator.list_models("nope") == ()
    with pytest.raises(ConfigError, match="job"):
        operator.list_models("Not A Job")


def test_a_version_is_downloaded_as_it_is_sealed(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    first, second = write(listeners.store), write(listeners.store, round_=2)
    assert fetched(operator, "heart") == (0, second)
    assert fetched(operator, "heart", version=1) == (0, first)


def test_a_download_goes_on_where_the_same_file_was_left(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    data = write(listeners.store)
    (known,) = operator.list_models()
    assert fetched(operator, "heart", 1_000_001, known.file_id) == (1_000_001, data[1_000_001:])
    assert fetched(operator, "heart", len(data), known.file_id) == (len(data), b"")
    # Of another file, or beyond its end, everything is sent.
    assert fetched(operator, "heart", 1_000_001, bytes(16)) == (0, data)
    assert fetched(operator, "heart", len(data) + 1, known.file_id) == (0, data)
    assert fetched(operator, "heart", 2**63, known.file_id) == (0, data)


def test_the_newest_run_is_found_by_the_name_of_the_job(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    first, third = write(listeners.store), write(listeners.store, "heart.3")
    files = write(listeners.store, "heart.3.files", job="heart.3")
    assert fetched(operator, "heart") == fetched(operator, "heart@3") == (0, third)
    assert fetched(operator, "heart.3") == (0, third)
    assert fetched(operator, "heart@1") == (0, first)
    assert fetched(operator, "heart.files") == (0, files)
    assert {found.model for found in operator.list_models("heart@3")} == {
        "heart.3",
        "heart.3.files",
    }
    with pytest.raises(JobError, match="there is no model 'heart@2'"):
        fetched(operator, "heart@2")


def test_what_is_not_there_or_for_no_owner_is_refused(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    write(listeners.store)
    listeners.store.write("lung", BIG, round=1)
    for model in ("nope", "", "../heart", "x" * 10_000):
        with pytest.raises(JobError, match="there is no model"):
            fetched(operator, model)
    with pytest.raises(JobError, match="heart has no version 7") as caught:
        fetched(operator, "heart", version=7)
    assert caught.value.hint == "kept are 1 to 1"
    with pytest.raises(JobError, match="sealed for the coordinator alone") as alone:
        fetched(operator, "lung")
    assert "owner_key" in alone.value.hint
    path = listeners.store.version("heart").path
    path.write_bytes(path.read_bytes()[:2_000_000])
    with pytest.raises(JobError, match="the file has 2000000 bytes"):
        fetched(operator, "heart")
    path.unlink()
    with pytest.raises(JobError, match="heart, version 1: no such file"):
        fetched(operator, "heart")


def test_sealing_pruning_and_rotation_go_on_during_a_download(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    data = write(listeners.store)
    with operator.download_model("heart") as download:
        received = [next(download.chunks)]
        write(listeners.store, round_=2)
        assert listeners.store.prune("heart", keep=1) == 1
        listeners.store.rotate("heart")
        received += download.chunks
    assert b"".join(received) == data
    with pytest.raises(JobError, match="heart has no version 1"):
        fetched(operator, "heart", version=1)


def test_a_version_that_is_sealed_again_meanwhile_is_found(
    listeners: DeploymentListeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(listeners.store)
    store, rotated = listeners.store, threading.Event()
    version = store.version

    def late(model: str, number: int | None = None) -> object:
        found = version(model, number)
        if not rotated.is_set():
            rotated.set()
            store.rotate("heart")
        return found

    for read in (
        lambda: store.load("heart"),
        lambda: store.open_file("heart")[1].close(),
        lambda: store.open_model("heart").close(),
    ):
        rotated.clear()
        monkeypatch.setattr(store, "version", late)
        read()
        assert rotated.is_set()
    missing = version("heart").path
    monkeypatch.setattr(store, "version", version)
    missing.unlink()
    with pytest.raises(FedlearnError, match="missing"):
        store.load("heart")


def test_one_operator_has_a_bounded_number_of_downloads(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    large = {"w": np.zeros(12_000_000, np.float32)}
    listeners.store.write("heart", large, round=1, recipients=(OWNER_KEY,))
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            next(stack.enter_context(operator.download_model("heart")).chunks)
        with pytest.raises(Throttled, match="8 feeds under way"):
            fetched(operator, "heart")
        with operator_client(listeners, "bob") as other:
            assert len(other.list_models()) == 1


def test_a_revoked_operator_gets_no_more_of_a_download(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    large = {"w": np.zeros(10_000_000, np.float32)}
    listeners.store.write("heart", large, round=1, recipients=(OWNER_KEY,))
    with operator_client(listeners, "bob") as bob, bob.download_model("heart") as download:
        next(download.chunks)
        operator.revoke_operator(name="bob")
        with pytest.raises(FedlearnError, match="revoked"):
            list(download.chunks)


def test_the_ledger_is_read_in_pages_and_by_kind(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    for number in range(40):
        listeners.ledger.append("round", {"job": "heart", "round": number, "text": "x" * 30_000})
    listeners.ledger.append("export", {"job": "heart"})
    rows = list(operator.read_ledger())
    entries = list(listeners.ledger.entries())
    assert [(row[0], row[2], row[5]) for row in rows] == [
        (entry.sequence, entry.kind, entry.hash) for entry in entries
    ]
    assert [row[0] for row in operator.read_ledger(after=40)] == [41, 42]
    assert [row[0] for row in operator.read_ledger(kind="export")] == [42]
    assert [row[0] for row in operator.read_ledger(after=1, limit=2)] == [2, 3]
    assert list(operator.read_ledger(after=42)) == []
    for bad in ({"kind": "Not A Kind"}, {"after": 2**63}, {"limit": 2**63}):
        with pytest.raises(ConfigError):
            list(operator.read_ledger(**bad))


def test_the_head_comes_with_a_key_that_the_ca_signed(
    listeners: DeploymentListeners, operator: OperatorClient
) -> None:
    state = operator.ledger_state()
    end = listeners.ledger.head()
    assert end is not None
    assert (state.sequence, state.hash) == (end.sequence, end.hash)
    ca = listeners.deployment.ca.certificate_pem
    key = certified_ledger_key(ca, state.public_key, state.key_signature)
    assert key == listeners.ledger.public_key
    other = CertificateAuthority.create(TRUST_DOMAIN, listeners.deployment.clock())
    for pem, public, signature in (
        (other.certificate_pem, state.public_key, state.key_signature),
        (ca, state.public_key[:-1] + b"\0", state.key_signature),
        (ca, state.public_key, bytes(64)),
        (ca, state.public_key, b""),
        (ca, b"not a key", listeners.deployment.ca.sign_ledger_key(b"not a key")),
    ):
        with pytest.raises(LedgerError, match="did not sign the key"):
            certified_ledger_key(pem, public, signature)


def test_a_download_that_is_stopped_reads_no_further(listeners: DeploymentListeners) -> None:
    write(listeners.store)
    stop = threading.Event()
    request = pb.DownloadModelRequest(model="heart")
    parts = ModelSender(listeners.store).parts(request, lambda _: True, stop)
    assert [next(parts).WhichOneof("part") for _ in range(2)] == ["file", "data"]
    stop.set()
    assert list(parts) == []
