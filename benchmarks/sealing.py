"""Compares sealing and opening a model with the limits of the machine, as ratios in one run.

    python benchmarks/sealing.py [--mib 256] [--repeat 5] [--directory DIR] [--json]

The floors are measured in the same process, in turns with what is compared:

* *cipher*: AES-256-GCM over the same buffers in memory, 1 MiB at a time
  (``openssl speed -evp aes-256-gcm -bytes 1048576`` is printed next to it);
* *disk*: writing, or reading, the same bytes in the clear; the write ends with fsync.

When the two overlap perfectly, sealing takes as long as the slower of them; when they do not
overlap, as long as their sum. A signed file needs one pass of SHA-256 in addition, and so does the
check of its signature. Peak memory is VmHWM without the model itself. The page cache is warm for
reading; the cost of a cold disk is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description="Seal and open a model, as ratios.")
    parser.add_argument("--mib", type=int, default=256, help="size of the model (default 256)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions (default 5)")
    parser.add_argument(
        "--directory", type=Path, help="where to write (default: a new one in /tmp)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    if not 1 <= options.mib <= 65_536 or not 1 <= options.repeat <= 100:
        parser.error("--mib is 1 to 65536, --repeat 1 to 100")
    directory = Path(tempfile.mkdtemp(prefix="fedlearn-sealing-", dir=options.directory))
    try:
        free = shutil.disk_usage(directory).free // MIB
        if free < 4 * options.mib:
            parser.error(f"{directory} has {free} MiB free, {4 * options.mib} are needed")
        report(measure(directory, options.mib, options.repeat), options.mib, options.json)
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
    measured = {name: Measured() for name in tasks}
    for _ in range(repeat):
        for left in (path, plain, naive, signed):
            left.unlink(missing_ok=True)
        os.sync()
        for name, task in tasks.items():
            _reset_peak()
            before = _status("VmRSS")
            start = time.perf_counter()
            task()
            measured[name].seconds.append(time.perf_counter() - start)
            measured[name].peak = max(measured[name].peak, _status("VmHWM") - before)
    for name, array in model.items():
        if not np.array_equal(array, target[name]):
            raise SystemExit(f"{name} was not opened as it was sealed")
    return measured


def report(measured: dict[str, Measured], mib: int, as_json: bool) -> None:
    """Print what was measured."""
    cipher, write, read = (measured[n].median for n in ("cipher", "disk write", "disk read"))
    floors = {"seal": (cipher, write), "open": (cipher, read), "verify": (cipher, read)}
    floors["save, encrypt, write"] = floors["seal, signed"] = (cipher, write)
    floors["check signer"] = (cipher, read)
    speed = _openssl_speed()
    rows = []
    for name, task in measured.items():
        row: dict[str, object] = {
            "task": name,
            "seconds": round(task.median, 4),
            "mib_per_second": round(mib / task.median),
            "extra_mib": round(task.peak, 1),
        }
        if name in floors:
            aes, disk = floors[name]
            row["times_cipher"] = round(task.median / aes, 2)
            row["times_disk"] = round(task.median / disk, 2)
            row["times_both"] = round(task.median / (aes + disk), 2)
        rows.append(row)
    if as_json:
        print(json.dumps({"mib": mib, "openssl_speed_mib_per_second": speed, "tasks": rows}))
        return
    print(
        f"a model of {mib} MiB; medians of {len(measured['seal'].seconds)}; ratios: lower is better"
    )
    shown = "not available" if speed is None else f"{speed} MiB/s"
    print(f"openssl speed -evp aes-256-gcm, 1 MiB blocks: {shown}")
    print(f"{'':22}{'MiB/s':>8}{'x cipher':>10}{'x disk':>8}{'x both':>8}{'extra MiB':>11}")
    for row in rows:
        ratios = [row.get(key, "") for key in ("times_cipher", "times_disk", "times_both")]
        print(
            f"{row['task']:22}{row['mib_per_second']:>8}{ratios[0]:>10}{ratios[1]:>8}"
            f"{ratios[2]:>8}{row['extra_mib']:>11}"
        )


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


def _openssl_speed() -> int | None:
    if shutil.which("openssl") is None:
        return None
    command = ["openssl", "speed", "-elapsed", "-seconds", "1", "-bytes", str(CHUNK_BYTES)]
    done = subprocess.run(
        [*command, "-evp", "aes-256-gcm"], capture_output=True, text=True, check=False
    )
    found = re.search(r"AES-256-GCM\s+([\d.]+)k", done.stdout, re.IGNORECASE)
    return None if found is None else round(float(found[1]) * 1000 / MIB)


if __name__ == "__main__":
    sys.exit(main())
