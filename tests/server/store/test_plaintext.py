"""Nothing that holds weights is ever in the clear on the disk, not even after a SIGKILL.

A marker is planted in the weights, bit for bit, and the whole state directory is searched
for any eight bytes of it: after a clean end, and after the writer was killed at random moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlearn.update.arrays import encode
from server.keys.key_protectors import Passphrase, RecoveryKey
from server.keys.service import KeyService
from server.store.models import ModelStore

WORDS = "correct horse battery staple"
MARKER = bytes.fromhex("5ea1ed3e5ea1ed3f5ea1ed405ea1ed41")
MODEL = {"w": np.frombuffer(MARKER * 100_000, np.float32)}

_WRITER = """
import sys
from pathlib import Path
import numpy as np
from server.keys.service import KeyService
from server.keys.key_protectors import Passphrase
from server.store.models import ModelStore

state, words, marker = Path(sys.argv[1]), sys.argv[2], bytes.fromhex(sys.argv[3])
keys = KeyService.open(state / "keys", [Passphrase(words, 2**15)])
weights = {f"w{i}": np.frombuffer(marker * 100_000, np.float32) for i in range(4)}
with ModelStore.open(state / "store", keys) as store:
    for number in range(1_000_000):
        store.write("demo", weights, round=number, state=marker * 4)
        store.prune("demo", keep=2)
        if number % 5 == 4:
            store.rotate("demo")
        print(number, flush=True)
"""


def everything(state: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file())


def assert_sealed(state: Path) -> None:
    found = everything(state)
    assert len(found) > 1000
    for offset in range(len(MARKER)):
        piece = (MARKER * 2)[offset : offset + 8]
        assert piece not in found
        assert piece.hex().encode() not in found


def create(state: Path) -> RecoveryKey:
    recovery = RecoveryKey.of(X25519PrivateKey.generate())
    KeyService.create(
        state / "keys", [RecoveryKey(recovery.public), Passphrase(WORDS, 2**15)]
    ).close()
    return recovery


def test_the_search_would_find_plaintext(tmp_path: Path) -> None:
    (tmp_path / "leak").write_bytes(encode(MODEL))
    with pytest.raises(AssertionError):
        assert_sealed(tmp_path)


def test_nothing_is_in_the_clear_after_a_clean_end(tmp_path: Path) -> None:
    state = tmp_path / "state"
    recovery = create(state)
    keys = KeyService.open(state / "keys", [recovery])
    with ModelStore.open(state / "store", keys) as store:
        for number in range(3):
            store.write("demo", MODEL, round=number, state=MARKER * 10)
            assert_sealed(state)
        store.rotate("demo")
        store.export("demo", tmp_path / "out")
        assert_sealed(state)
    assert MARKER in (tmp_path / "out").read_bytes()
    assert_sealed(state)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_in_the_clear_after_a_kill(tmp_path: Path, seed: int) -> None:
    state = tmp_path / "state"
    recovery = create(state)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_WRITER), str(state), WORDS, MARKER.hex()],
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        done = int(process.stdout.readline())
        time.sleep(random.Random(seed).uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    done = int(rest[-1]) if rest else done
    assert_sealed(state)

    keys = KeyService.open(state / "keys", [recovery])
    with ModelStore.open(state / "store", keys) as store:
        latest = store.verify("demo")[-1]
        assert latest.version >= done + 1
        assert store.latest("demo", expected_version=done + 1) == latest
        assert store.state("demo") == MARKER * 4
        assert store.load("demo")["w3"].tobytes() == MARKER * 100_000
        names = [path.name for path in (state / "store" / "models").iterdir()]
        assert len(names) == len(store.versions("demo"))
        store.rotate("demo")
        assert store.verify("demo")[-1].version == latest.version
    assert_sealed(state)
