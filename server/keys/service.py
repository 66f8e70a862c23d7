"""The key service: one root key, and everything that is sealed under it.

::

    root key (server.keys.root_key)
    ├── small secrets, by name          sealed under a key derived from the root
    └── model keys, by model and epoch  32 random bytes each, sealed likewise
        └── content keys, by file id    HKDF of the model key; what a file is sealed with

On disk in the service's directory: ``root.json`` (the protector records), ``models.sealed``,
``secrets/NAME.sealed``. A copy of it discloses names and sizes only. A model key that
:meth:`KeyService.retire` removed is destroyed, and with it every file that was sealed under it.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from attestation.durable import is_temporary
from attestation.errors import UnsealError
from fedlearn.errors import KeyReleaseDenied, StoreError
from fedlearn.sealing import Header, release_to
from fedlearn.sealing.client_state import release_secret
from server.admission.registry import Admission
from server.disk import store_error
from server.keys.key_protectors import ROOT_BYTES, Protector
from server.keys.release import LiveAdmissions, Releasable, check_release
from server.keys.root_key import RootKey, hkdf, reason
from server.naming import checked_name

__all__ = ["KeyService", "ModelKey", "RecordEntry", "state_secret_name"]

RecordEntry = Callable[[str, Mapping[str, Any]], object]
"""Appends one entry to the ledger, durably: ``record(kind, body)``."""

_MODELS_FILE: Final = "models.sealed"
_CONTENT: Final = b"fedlearn/content-key/1\0"
_MAX_SECRET: Final = 1024 * 1024
_MAX_MODELS_FILE: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelKey:
    """A model key in one epoch; gives each file its content key."""

    key_id: str
    value: bytes = field(repr=False)

    def content_key(self, file_id: bytes) -> bytes:
        """Return the content key of one file (32 bytes)."""
        return hkdf(self.value, salt=file_id, info=_CONTENT)


def state_secret_name(run: str) -> str:
    """Return the name under which the secret of the states of a run's clients is kept."""
    return f"client-state-{run}"


class KeyService:
    """Holds the keys in memory. Safe to use from several threads of one process.

    Use :meth:`create` or :meth:`open`, whose arguments and errors are those of
    :class:`server.keys.root_key.RootKey`. Only one process writes at a time: the one that holds
    the lock of the :class:`server.store.models.ModelStore` beside it.
    """

    def __init__(self, root: RootKey, *, record: RecordEntry | None = None) -> None:
        self.root = root
        self._record = record
        self._lock = threading.RLock()
        self._path = root.directory / _MODELS_FILE
        data = root.read(self._path, "models", limit=_MAX_MODELS_FILE)
        self._models: dict[str, dict[str, Any]] = {} if data is None else json.loads(data)

    def __repr__(self) -> str:
        return f"KeyService({self.id})"

    @classmethod
    def create(
        cls,
        directory: Path,
        protectors: Sequence[Protector],
        *,
        record: RecordEntry | None = None,
        allow_insecure_key_file: bool = False,
    ) -> KeyService:
        """Make a root key and a service under it."""
        root = RootKey.create(
            directory, protectors, allow_insecure_key_file=allow_insecure_key_file
        )
        return cls(root, record=record)

    @classmethod
    def open(
        cls,
        directory: Path,
        protectors: Sequence[Protector],
        *,
        record: RecordEntry | None = None,
        allow_insecure_key_file: bool = False,
        expected_id: str | None = None,
    ) -> KeyService:
        """Recover the root key and open the service under it."""
        root = RootKey.open(
            directory,
            protectors,
            allow_insecure_key_file=allow_insecure_key_file,
            expected_id=expected_id,
        )
        return cls(root, record=record)

    @property
    def id(self) -> str:
        """The name of the root key, which does not reveal it and can be pinned in configuration."""
        return self.root.id

    def record_with(self, record: RecordEntry) -> None:
        """Report releases to ``record`` from now on: the ledger's own key is kept here."""
        self._record = record

    def close(self) -> None:
        """Forget all keys. The service cannot be used afterwards."""
        with self._lock:
            self.root.close()
            self._models = {}

    def sweep(self) -> None:
        """Remove what a crash left half-written. Only for the process that may write."""
        for path in self.root.directory.rglob(".*.tmp"):
            if is_temporary(path.name):
                path.unlink(missing_ok=True)

    # -- small secrets

    def secret(self, name: str) -> bytes | None:
        """Return the secret that was kept under ``name``, or ``None``.

        :raises StoreError: when it is there and does not open.
        """
        return self.root.read(self._secret_path(name), f"secret/{name}", limit=_MAX_SECRET + 1024)

    def keep(self, name: str, value: bytes) -> None:
        """Keep a small secret (a CA key, a signing key), replacing what was there.

        :raises StoreError: when it cannot be written; the previous one is then unchanged.
        """
        if len(value) > _MAX_SECRET:
            raise StoreError(f"a secret has at most {_MAX_SECRET} bytes")
        with self._lock:
            self.root.write(self._secret_path(name), f"secret/{name}", value)

    def discard(self, name: str) -> None:
        """Remove the secret that was kept under ``name``, if there is one.

        :raises StoreError: when it cannot be removed.
        """
        path = self._secret_path(name)
        with self._lock:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise store_error(f"{path}: {reason(error)}", error) from error

    # -- model keys

    def define(self, model: str, *, job: str) -> None:
        """Make the first key of a model that belongs to ``job``; no change if it has one.

        :raises StoreError: when the model belongs to another job, or on a bad name.
        """
        checked_name(model)
        checked_name(job)
        with self._lock:
            known = self._models.get(model)
            if known is not None:
                if known["job"] != job:
                    raise StoreError(f"the model {model} belongs to the job {known['job']}")
                return
            fresh = {"job": job, "epoch": 1, "keys": {"1": secrets.token_hex(ROOT_BYTES)}}
            self._write_models({**self._models, model: fresh})

    def models(self) -> dict[str, str]:
        """Return each model and the job that it belongs to."""
        with self._lock:
            return {model: str(entry["job"]) for model, entry in sorted(self._models.items())}

    def model_key(self, model: str) -> ModelKey:
        """Return the present key of a model, to seal with.

        :raises StoreError: when the model is not defined.
        """
        with self._lock:
            entry = self._model(model)
            epoch = str(entry["epoch"])
            return ModelKey(f"{self.id}/{epoch}", bytes.fromhex(entry["keys"][epoch]))

    def rotate(self, model: str) -> str:
        """Begin a new epoch: what is sealed from now on has another key; return its id.

        Older files open until :meth:`retire`.
        """
        with self._lock:
            entry = self._model(model)
            epoch = int(entry["epoch"]) + 1
            keys = {**entry["keys"], str(epoch): secrets.token_hex(ROOT_BYTES)}
            self._write_models({**self._models, model: {**entry, "epoch": epoch, "keys": keys}})
            return f"{self.id}/{epoch}"

    def retire(self, model: str) -> int:
        """Destroy all keys of a model but the present one; return how many.

        What is still sealed under them can never be opened again.
        """
        with self._lock:
            entry = self._model(model)
            kept = {str(entry["epoch"]): entry["keys"][str(entry["epoch"])]}
            removed = len(entry["keys"]) - len(kept)
            if removed:
                self._write_models({**self._models, model: {**entry, "keys": kept}})
            return removed

    def destroy(self, model: str) -> None:
        """Destroy all keys of a model, if it has any.

        What is still sealed under them can never be opened again by this service.
        """
        with self._lock:
            if model in self._models:
                self._write_models({k: v for k, v in self._models.items() if k != model})

    def content_key_of(self, header: Header) -> bytes:
        """Return the content key of a file (so that a service opens files itself).

        :raises UnsealError: when it was sealed under another service or a retired key.
        """
        return self._content_key(header.model, header.key, header.file_id)

    def release(
        self,
        admission: Admission,
        file: Releasable,
        *,
        registry: LiveAdmissions,
        now: datetime,
    ) -> bytes:
        """Return the content key of ``file``, wrapped to the admission's HPKE key.

        The admission is looked up again: it must be live, affirming, unexpired, for the key
        that it names, and of the job that the model belongs to. Each release and each
        refusal is in the ledger before this returns; a release that cannot be recorded does
        not take place. :func:`fedlearn.sealing.open_released` opens the answer.

        :raises KeyReleaseDenied: naming the condition that failed.
        """
        body: dict[str, Any] = {
            "model": file.model,
            "version": file.version,
            "file_id": file.file_id.hex(),
            "job": admission.job,
            "site": admission.site,
            "client": admission.client,
            "to": admission.thumbprint.hex(),
            "evidence": admission.evidence_digest.hex(),
            "policy": admission.policy_digest.hex(),
        }
        try:
            with self._lock:
                job = self._models.get(file.model, {}).get("job")
            check_release(admission, model=file.model, job=job, registry=registry, now=now)
            try:
                key = self._content_key(file.model, file.key, file.file_id)
                wrapped = release_to(
                    key, admission.hpke_key, model=file.model, file_id=file.file_id
                )
            except (UnsealError, ValueError) as error:
                raise KeyReleaseDenied(f"no key to release: {error}") from error
        except KeyReleaseDenied as denied:
            self._report({**body, "allowed": False, "reason": str(denied)})
            raise
        self._report({**body, "allowed": True})
        return wrapped

    def release_state(
        self, admission: Admission, *, registry: LiveAdmissions, now: datetime
    ) -> bytes:
        """Return the coordinator's part of the key of a client's states, wrapped to its HPKE key.

        It is the same for every client of the site in this run, and gone with :meth:`discard` of
        :func:`state_secret_name`. The conditions and the ledger are those of :meth:`release`.
        :func:`fedlearn.sealing.client_state.open_secret` opens the answer.

        :raises KeyReleaseDenied: naming the condition that failed.
        """
        body: dict[str, Any] = {
            "model": "the state of its client",
            "version": 0,
            "file_id": "",
            "job": admission.job,
            "site": admission.site,
            "client": admission.client,
            "to": admission.thumbprint.hex(),
            "evidence": admission.evidence_digest.hex(),
            "policy": admission.policy_digest.hex(),
        }
        try:
            check_release(
                admission, model=body["model"], job=admission.job, registry=registry, now=now
            )
            try:
                wrapped = release_secret(
                    self._state_secret(admission.job),
                    admission.hpke_key,
                    job=admission.job,
                    site=admission.site,
                )
            except ValueError as error:
                raise KeyReleaseDenied(f"no key to release: {error}") from error
        except KeyReleaseDenied as denied:
            self._report({**body, "allowed": False, "reason": str(denied)})
            raise
        self._report({**body, "allowed": True})
        return wrapped

    def _state_secret(self, run: str) -> bytes:
        """Return the secret of the states of a run, made when it is first needed."""
        name = state_secret_name(run)
        with self._lock:
            found = self.secret(name)
            if found is None:
                found = secrets.token_bytes(ROOT_BYTES)
                self.keep(name, found)
            return found

    # -- inside

    def _report(self, body: Mapping[str, Any]) -> None:
        if self._record is not None:
            self._record("key-release", body)

    def _model(self, model: str) -> dict[str, Any]:
        try:
            return self._models[model]
        except KeyError:
            raise StoreError(f"there is no model {model!r}") from None

    def _content_key(self, model: str, key_id: str, file_id: bytes) -> bytes:
        service, _, epoch = key_id.partition("/")
        if service != self.id:
            raise UnsealError(
                f"sealed under the key service {service or '(none)'}, this one is {self.id}"
            )
        with self._lock:
            value = self._models.get(model, {}).get("keys", {}).get(epoch)
        if value is None:
            raise UnsealError(f"the key {epoch!r} of the model {model!r} no longer exists")
        return ModelKey(key_id, bytes.fromhex(value)).content_key(file_id)

    def _secret_path(self, name: str) -> Path:
        return self.root.directory / "secrets" / f"{checked_name(name)}.sealed"

    def _write_models(self, models: dict[str, dict[str, Any]]) -> None:
        data = json.dumps(models, sort_keys=True, separators=(",", ":")).encode()
        self.root.write(self._path, "models", data)
        self._models = models
