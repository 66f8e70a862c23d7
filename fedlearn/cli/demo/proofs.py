"""The end of the demo: the results of a run are checked with the public commands."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlearn.api.owned import open_owned
from fedlearn.demo.outcome import LedgerFacts, ModelFacts
from fedlearn.errors import JobError, LaunchError
from fedlearn.job.owner_key import owner_key_text
from fedlearn.local.federation import Federation, program

__all__ = ["Opened", "OwnerKey", "check_ledger", "open_model"]

Reported = Callable[[str, str], None]
"""Called with a command line and its answer."""

_SECONDS = 120.0
_Words = Sequence[str | Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerKey:
    """An X25519 key pair: the private half in a file, the public one as a job names it."""

    file: Path
    public: str

    @classmethod
    def make(cls, file: Path) -> OwnerKey:
        """Make a key and keep its private half in ``file`` (PEM, mode 0600)."""
        key = X25519PrivateKey.generate()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cls(file=file, public=owner_key_text(key.public_key().public_bytes_raw()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A sealed model, and its weights as the owner sees them."""

    facts: ModelFacts
    weights: Mapping[str, Any]


def check_ledger(federation: Federation, narrate: Reported) -> LedgerFacts:
    """Verify every entry of the coordinator's ledger."""
    command: _Words = ["ledger", "verify", "--state", federation.state, "--json"]
    done = _run(command)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        found = {"error": {"message": done.stderr.strip() or "no answer"}}
    fault = ""
    if done.returncode or not found.get("intact"):
        fault = str(found.get("error", {}).get("message", "it is damaged"))
    entries = int(found.get("entries", 0))
    narrate(_shown(command), fault or f"{entries} entries, every one verified")
    sequence, _, head = str(found.get("head") or "").partition(":")
    return LedgerFacts(
        entries=entries,
        head=head or sequence,
        key=str(found.get("key") or found.get("key_fingerprint") or ""),
        kinds={str(kind): int(count) for kind, count in found.get("kinds", {}).items()},
        fault=fault,
    )


def open_model(
    federation: Federation,
    model: str,
    *,
    owner: OwnerKey,
    stranger: OwnerKey,
    out: Path,
    narrate: Reported,
) -> Opened:
    """Copy the newest version of ``model`` to ``out``, sealed, and open it with both keys.

    :raises JobError: when the coordinator keeps no such model.
    :raises LaunchError: when the owner's key does not open it.
    """
    listing: _Words = [
        *("model", "list", "--state", federation.state),
        *("--passphrase-file", federation.passphrase_file, "--json"),
    ]
    kept = [item for item in json.loads(_checked(listing))["models"] if item["model"] == model]
    if not kept:
        raise JobError(f"the coordinator keeps no model {model!r}")
    latest = max(kept, key=lambda item: int(item["version"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(latest["file"], out)
    ours: _Words = ["--operator", federation.login]
    command: _Words = ["model", "open", out, "--key", owner.file, *ours, "--json"]
    opened = json.loads(_checked(command))
    parameters = sum(math.prod(tensor["shape"]) for tensor in opened["tensors"])
    narrate(_shown(command), f"{parameters:,} numbers, signed by this coordinator")
    content = out.read_bytes()
    facts = ModelFacts(
        name=str(latest["model"]),
        version=int(latest["version"]),
        file=out.name,
        bytes=len(content),
        sha256=sha256(content).hexdigest(),
        tensors=len(opened["tensors"]),
        parameters=parameters,
        owner=owner.public,
        opened=True,
        matches=False,
        stranger=stranger.public,
        refusal=_try_stranger(out, stranger, ours, narrate),
    )
    return Opened(facts=facts, weights=_unseal(out, owner.file))


def _try_stranger(path: Path, stranger: OwnerKey, ours: _Words, narrate: Reported) -> str:
    """Return the refusal of a key for which the model was not sealed; empty if it opened."""
    command: _Words = ["model", "open", path, "--key", stranger.file, *ours, "--json"]
    done = _run(command)
    answer = ""
    if done.returncode:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            answer = str(json.loads(done.stdout)["error"]["message"])
        answer = (answer or done.stderr.strip() or "refused").replace(f"{path}: ", "")
    narrate(_shown(command), answer or "it opened")
    return answer


def _unseal(path: Path, key: Path) -> Mapping[str, Any]:
    from fedlearn.update import sealed

    with open_owned(path, key) as reader:
        return sealed.load(reader)


def _run(command: _Words) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [str(program("fedlearn")), *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(f"`{_shown(command)}` did not end within {_SECONDS:.0f} s") from None


def _checked(command: _Words) -> str:
    done = _run(command)
    if done.returncode:
        wrote = (done.stdout or done.stderr).strip()
        raise LaunchError(f"`{_shown(command)}` ended with status {done.returncode}: {wrote}")
    return done.stdout


def _shown(command: _Words) -> str:
    words = [Path(word).name if os.sep in str(word) else str(word) for word in command]
    return f"fedlearn {' '.join(word for word in words if word != '--json')}"
