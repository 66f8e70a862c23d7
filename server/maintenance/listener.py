"""The coordinator's end of ``STATE/maintenance.sock``: exports are recorded, models rotated.

The socket is for the user that runs the coordinator, and a request counts only with the proof of
having the root key (:mod:`server.maintenance.messages`). The coordinator writes no plaintext: it
records an export in the ledger, and the command, which has opened the state, writes the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from attestation.errors import AttestationError
from fedlearn.errors import ConfigError, FedlearnError, StoreError, TransportError
from server.keys.root_key import RootKey
from server.maintenance.messages import (
    REPLY,
    REQUEST,
    VERSION,
    proof_key,
    receive_proven,
    send,
    send_proven,
    short_path,
)
from server.store.models import ModelStore

__all__ = ["MaintenanceListener"]

_LOG = logging.getLogger(__name__)
_AT_ONCE: Final = 4
_REQUEST_SECONDS: Final = 10.0
_MAX_TARGET: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")


class MaintenanceListener:
    """Serves the socket in ``state``, from :meth:`start` to :meth:`stop`.

    :param store: the store of the coordinator, open for writing, with its ledger.
    """

    def __init__(self, state: Path, root: RootKey, store: ModelStore) -> None:
        self._state = state
        self._key = proof_key(root)
        self._store = store
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="maintenance")
        self._thread = threading.Thread(target=self._accept, name="maintenance", daemon=True)
        self._over = threading.Event()

    def start(self) -> None:
        """Listen. What a coordinator that was killed left there is replaced.

        :raises ConfigError: when the socket cannot be made.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(self._state) as path:
                Path(path).unlink(missing_ok=True)
                # Linux gives the file the mode of the socket: it is never open to others.
                os.fchmod(self._socket.fileno(), 0o600)
                self._socket.bind(path)
            self._socket.listen(_AT_ONCE)
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"the socket for commands cannot be made: {(error.strerror or str(error)).lower()}",
                where=str(self._state),
            ) from error
        self._thread.start()

    def stop(self) -> None:
        """Take no new request, and wait for those that are being carried out."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(OSError), short_path(self._state) as path:
            Path(path).unlink(missing_ok=True)
        self._thread.join(5.0)
        self._pool.shutdown(wait=True)

    def fault(self) -> str:
        """Return what is wrong; ``""`` when it serves."""
        return "" if self._thread.is_alive() or self._over.is_set() else "the thread has ended"

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if not self._over.is_set():
                    _LOG.exception("no commands are served any more")
                return
            self._pool.submit(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._answer(connection)
            except (EOFError, ConnectionError):
                pass  # a command that asks only whether a coordinator runs
            except (TransportError, OSError, ValueError) as error:
                _LOG.warning("a request on the maintenance socket is refused: %s", error)
            except Exception:  # noqa: BLE001 (reported; the next request is served)
                _LOG.exception("a request on the maintenance socket failed")

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_REQUEST_SECONDS)
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(found)
        if user != os.geteuid():
            send(connection, {"refused": f"the coordinator runs as user {os.geteuid()}"})
            raise TransportError(f"user {user} is not the coordinator's, {os.geteuid()}")
        nonce = secrets.token_bytes(32)
        send(connection, {"version": VERSION, "nonce": nonce.hex()})
        proven: dict[str, Any] = {"key": self._key, "nonce": nonce}
        try:
            request = receive_proven(connection, side=REQUEST, **proven)
        except TransportError as error:
            send(connection, {"refused": str(error)})
            raise
        try:
            reply = self._do(request)
        except (FedlearnError, AttestationError) as error:
            code = error.code if isinstance(error, FedlearnError) else StoreError.code
            reply = {"code": code, "message": str(error), "hint": error.hint}
        send_proven(connection, reply, side=REPLY, **proven)

    def _do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        match request:
            case {
                "do": "record-export",
                "model": str(model),
                "version": int(version),
                "digest": str(digest),
                "to": str(to),
                **rest,
            } if not rest and len(to) <= _MAX_TARGET:
                stored = self._store.version(model, version)
                if stored.digest.hex() != digest:
                    raise StoreError(
                        f"{model}, version {version}, has another digest at the coordinator",
                        hint="run the same again; if it stays so, run `fedlearn model verify`",
                    )
                self._store.record_export(stored, to)
                return {"done": "record-export"}
            case {"do": "rotate", "model": str(model), **rest} if not rest:
                self._store.rotate(model)
                return {"done": "rotate"}
        raise ConfigError(
            "the coordinator does not know this request", hint="use the same release for both"
        )
