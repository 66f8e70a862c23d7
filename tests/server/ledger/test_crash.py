"""A process killed while it appends leaves a ledger that verifies and goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.ledger import LEDGER_FILE, Ledger, LedgerReader

WRITER = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives import serialization
from server.ledger import Ledger

key = serialization.load_pem_private_key(Path(sys.argv[2]).read_bytes(), None)
ledger = Ledger.open(Path(sys.argv[1]), key)
number = 0
while True:
    number += 1
    ledger.append("update", {"n": number, "filler": "x" * (number * 37 % 3000)})
    print(number, flush=True)
"""


def acknowledged(process: subprocess.Popen[bytes], count: int) -> int:
    """Read ``count`` acknowledgements, kill the writer, and read what it still printed."""
    assert process.stdout is not None
    last = 0
    for _ in range(count):
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    for line in process.stdout.read().split(b"\n"):
        if line.strip():
            last = max(last, int(line))
    process.wait(30)
    return last


@pytest.fixture
def key_file(tmp_path: Path) -> tuple[ec.EllipticCurvePrivateKey, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "key.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return key, path


def test_sigkill_while_appending(
    tmp_path: Path, key_file: tuple[ec.EllipticCurvePrivateKey, Path]
) -> None:
    key, key_path = key_file
    path = tmp_path / LEDGER_FILE
    chance = random.Random(7)
    promised = 0
    for _ in range(4):
        before = 0
        if path.exists():
            before = LedgerReader(path).verify(key.public_key()).entries
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(key_path)], stdout=subprocess.PIPE
        )
        try:
            promised = before + acknowledged(process, chance.randrange(1, 25))
        finally:
            process.kill()
        found = LedgerReader(path).verify(key.public_key())
        # Every acknowledged entry is there; one more may have been written unheard.
        assert promised <= found.entries <= promised + 1
    with Ledger.open(path, key) as ledger:
        ledger.append("export", {})
        assert ledger.verify(key.public_key()).entries in (promised + 1, promised + 2)


def test_losing_the_write_ahead_log_is_found_with_a_head(
    tmp_path: Path, key_file: tuple[ec.EllipticCurvePrivateKey, Path]
) -> None:
    from fedlearn.errors import LedgerError

    key, key_path = key_file
    path = tmp_path / LEDGER_FILE
    with Ledger.open(path, key) as ledger:
        ledger.append("round", {})
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(key_path)], stdout=subprocess.PIPE
    )
    acknowledged(process, 5)
    head = LedgerReader(path).head()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert LedgerReader(path).verify(key.public_key()).entries == 1
    with pytest.raises(LedgerError) as caught:
        LedgerReader(path).verify(key.public_key(), expect_head=head)
    assert caught.value.entry == 2
