"""Compares sealing and opening a model with the limits of the machine, as ratios in one run.

The floors are measured in the same process, in turns with what is compared:

* *cipher*: AES-256-GCM over the same buffers in memory, 1 MiB at a time;
* *disk*: writing, or reading, the same bytes in the clear; the write ends with fsync.

When the two overlap perfectly, sealing takes as long as the slower of them; when they do not
overlap, as long as their sum. A signed file needs one pass of SHA-256 in addition, and so does the
check of its signature. Peak memory is VmHWM without the model itself. The page cache is warm for
reading; the cost of a cold disk is not measured.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _report import measured, options, show
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.sealing import (
    CHUNK_BYTES,
    ContentKey,
    FileSigner,
    open_sealed,
    seal,
    signer_digest,
)
from fedlearn.update import sealed
from fedlearn.update.arrays import Array, encode

MIB = 1 << 20


class OneKey:
    """Seals with one content key, so that the benchmark can open the file."""

    key_id = "benchmark"

    def __init__(self) -> None:
        self.value = secrets.token_bytes(32)

    def content_key(self, file_id: bytes) -> bytes:
        """Return the key."""
        return self.value


@dataclass
class Measured:
    """Seconds of every repetition, and the peak of extra memory in MiB."""

    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = options(__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the model (default 256)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions (default 5)")
    parser.add_argument(
        "--directory", type=Path, help="where to write (default: a new one in /tmp)"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.mib, arguments.repeat = 4, 1
    if not 1 <= arguments.mib <= 65_536 or not 1 <= arguments.repeat <= 100:
        parser.error("--mib is 1 to 65536, --repeat 1 to 100")
    directory = Path(tempfile.mkdtemp(prefix="fedlearn-sealing-", dir=arguments.directory))
    try:
        free = shutil.disk_usage(directory).free // MIB
        if free < 4 * arguments.mib:
            parser.error(f"{directory} has {free} MiB free, {4 * arguments.mib} are needed")
        report(measure(directory, arguments.mib, arguments.repeat), arguments.mib, arguments.json)
    finally:
        shutil.rmtree(directory)
    return 0


def measure(directory: Path, mib: int, repeat: int) -> dict[str, Measured]:
    """Run every task ``repeat`` times, in turns."""
    model = _model(mib)
    key = OneKey()
    views = [array.reshape(-1).view(np.uint8).data for array in model.values()]
    target = {name: np.empty_like(array) for name, array in model.items()}
    for array in target.values():
        array.fill(1)
    aead, nonce = AESGCM(key.value), bytes(12)
    buffer = memoryview(bytearray(CHUNK_BYTES + 16))
    path, plain, naive = directory / "sealed", directory / "plain", directory / "naive"
    signed, signer = directory / "signed", FileSigner(ec.generate_private_key(ec.SECP256R1()))

    def seal_model() -> None:
        seal(path, sealed.as_tensors(model), model="m", version=1, round=0, key=key)

    def seal_signed() -> None:
        seal(
            signed, sealed.as_tensors(model), model="m", version=1, round=0, key=key, signer=signer
        )

    def check_signer() -> None:
        with open_sealed(signed, ContentKey(key.value)) as reader:
            reader.check_signer({signer_digest(signer.public_key)})

    def open_model() -> None:
        with open_sealed(path, ContentKey(key.value)) as reader:
            for name, array in target.items():
                reader.tensor(name, into=array.reshape(-1).view(np.uint8).data)

    def verify() -> None:
        with open_sealed(path, ContentKey(key.value)) as reader:
            reader.verify()

    def cipher() -> None:
        for view in views:
            for start in range(0, len(view), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                aead.encrypt_into(nonce, piece, None, buffer[: len(piece) + 16])

    def disk_write() -> None:
        fd = os.open(plain, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for view in views:
            for start in range(0, len(view), CHUNK_BYTES):
                os.write(fd, view[start : start + CHUNK_BYTES])
        os.fsync(fd)
        os.close(fd)

    def disk_read() -> None:
        fd = os.open(plain, os.O_RDONLY)
        while os.readv(fd, [buffer[:CHUNK_BYTES]]):
            pass
        os.close(fd)

    def save_encrypt_write() -> None:
        ciphertext = aead.encrypt(nonce, encode(model), None)
        with naive.open("wb") as file:
            file.write(ciphertext)
            file.flush()
            os.fsync(file.fileno())

    tasks: dict[str, Callable[[], None]] = {
        "cipher": cipher,
        "disk write": disk_write,
        "disk read": disk_read,
        "seal": seal_model,
        "open": open_model,
        "verify": verify,
        "seal, signed": seal_signed,
        "check signer": check_signer,
        "save, encrypt, write": save_encrypt_write,
    }
    found = {name: Measured() for name in tasks}
    for _ in range(repeat):
        for left in (path, plain, naive, signed):
            left.unlink(missing_ok=True)
        os.sync()
        for name, task in tasks.items():
            _reset_peak()
            before = _status("VmRSS")
            start = time.perf_counter()
            task()
            found[name].seconds.append(time.perf_counter() - start)
            found[name].peak = max(found[name].peak, _status("VmHWM") - before)
    for name, array in model.items():
        if not np.array_equal(array, target[name]):
            raise SystemExit(f"{name} was not opened as it was sealed")
    return found


def report(found: dict[str, Measured], mib: int, as_json: bool) -> None:
    """Show each task with the cipher and the disk that it needs at least."""
    rows = []
    for name, disk in _DISK.items():
        floor = {
            f"AES-256-GCM and {disk}": [
                a + b for a, b in zip(found["cipher"].seconds, found[disk].seconds, strict=True)
            ]
        }
        peers = {_NAIVE: found[_NAIVE].seconds} if name == "seal" else {}
        rows.append(
            measured(
                f"{name} {mib} MiB",
                unit="s",
                ours=found[name].seconds,
                peers=peers,
                floor=floor,
                how=f"wall time; medians of {len(found[name].seconds)} in turns; writing ends with "
                "fsync, reading is from the page cache",
            )
        )
    rows.append(
        measured(
            f"memory beside the model while sealing {mib} MiB",
            unit="MiB",
            ours=found["seal"].peak,
            peers={_NAIVE: found[_NAIVE].peak},
            how="growth of VmHWM",
        )
    )
    show(rows, as_json=as_json)


_NAIVE = "save, encrypt, write"
_DISK = {
    "seal": "disk write",
    "seal, signed": "disk write",
    "open": "disk read",
    "verify": "disk read",
    "check signer": "disk read",
}
"""What is shown, and what of the disk it needs."""


def _model(mib: int) -> dict[str, Array]:
    draw = np.random.default_rng(0)
    sizes = [min(16, mib - start) for start in range(0, mib, 16)]
    return {
        f"layer{i}.weight": draw.random(size * MIB // 4, dtype=np.float32)
        for i, size in enumerate(sizes)
    }


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    found = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {key}")
    return int(found[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
