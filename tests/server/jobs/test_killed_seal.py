"""A coordinator that is killed while it seals in the background goes on from the round before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedlearn.update.arrays import Array, encode
from server.admission.registry import AdmissionRegistry
from server.flower.job_plan import Checkpoint
from server.jobs.job_channel import JobChannelHandler
from server.keys.key_protectors import Passphrase
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, Ledger
from server.store.models import ModelStore

WORDS = "correct horse battery staple"


def model(number: int) -> dict[str, Array]:
    """The model of a round, 24 MiB of random values."""
    return {"w": np.random.default_rng(number).random(3 << 20)}


def opened(state: Path) -> tuple[JobChannelHandler, ModelStore, Ledger]:
    keys = KeyService.open(state / "keys", [Passphrase(WORDS, 2**15)])
    key = load_pem_private_key((state / "key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    ledger = Ledger.open(state / LEDGER_FILE, key)
    store = ModelStore.open(state / "store", keys, record=ledger.append)
    spec: Any = SimpleNamespace(
        name="demo",
        privacy=None,
        sites=("a",),
        rounds=9,
        owner_public_key=lambda: None,
        strategy=SimpleNamespace(name="app"),
    )
    job = JobChannelHandler(
        spec,
        store=store,
        ledger=ledger,
        registry=AdmissionRegistry(),
        report=lambda *_: None,
        keep=5,
    )
    return job, store, ledger


def finish(job: JobChannelHandler, number: int) -> None:
    job.event("round.started", {"round": number, "rounds": 9, "sites": ["a"]})
    job.save_checkpoint(Checkpoint(round=number, model=encode(model(number))))
    figures = {"seconds": 1.0, "sites": 1, "bytes": 1, "metrics": {}}
    job.event("round.finished", {"round": number, **figures})


def run(state: Path) -> None:
    """Finish rounds for ever; report each that the coordinator has let go on."""
    job, _, _ = opened(state)
    for number in range(job.round + 1, 1_000_000):
        finish(job, number)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1])
def test_a_kill_in_the_middle_of_a_seal_leaves_the_round_before(
    tmp_path: Path, seconds: float
) -> None:
    KeyService.create(tmp_path / "keys", [Passphrase(WORDS, 2**15)]).close()
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    code = f"from {__name__} import run; from pathlib import Path; run(Path({str(tmp_path)!r}))"
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    went_on = int(rest[-1]) if rest else 3
    job, store, ledger = opened(tmp_path)
    # At most one checkpoint was waiting, and what is there is whole.
    found = job.load_checkpoint()
    assert found is not None
    assert found.round in (went_on - 1, went_on, went_on + 1)
    assert bytes(found.model) == encode(model(found.round))
    assert [each.round for each in store.verify("demo")][-1] == found.round
    assert len(list((tmp_path / "store" / "models").iterdir())) == len(store.versions("demo"))
    assert ledger.verify(key.public_key()).entries
    # It goes on: the round that was lost gets the same bits.
    finish(job, found.round + 1)
    job.settle()
    assert store.load("demo")["w"].tobytes() == model(found.round + 1)["w"].tobytes()
    store.close()
    ledger.close()
