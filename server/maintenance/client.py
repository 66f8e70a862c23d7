"""A command's end of ``STATE/maintenance.sock``."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from fedlearn.errors import StoreError, TransportError
from fedlearn.wire.failure import ERRORS_BY_CODE
from server.keys.root_key import RootKey
from server.maintenance.messages import (
    REPLY,
    REQUEST,
    VERSION,
    proof_key,
    receive,
    receive_proven,
    send_proven,
    short_path,
)

__all__ = ["RunningCoordinator"]

_GREETING_SECONDS: Final = 20.0
_EXPORT: Final = ("model", "version", "digest", "to")


class RunningCoordinator:
    """The coordinator that runs on a state directory of this machine.

    Each request is a connection of its own.
    """

    def __init__(self, state: Path, root: RootKey) -> None:
        self._state = state
        self._key = proof_key(root)

    @classmethod
    def find(cls, state: Path, root: RootKey) -> Self | None:
        """Return the coordinator that runs on ``state``; None when none does.

        :raises StoreError: when its socket may not be used by this user.
        """
        found = cls(state, root)
        try:
            found._connect().close()
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError:
            raise _another_user(f"{state} is of another user") from None
        return found

    def record(self, kind: str, body: Mapping[str, Any]) -> None:
        """Have an export recorded in the ledger: :data:`server.keys.service.RecordEntry`.

        :raises FedlearnError: when it is not recorded; nothing may be exported then.
        """
        if kind != "export":
            raise StoreError(f"the coordinator runs, and records no {kind} of a command")
        self._ask(
            {"do": "record-export", **{name: body[name] for name in _EXPORT}},
            ended="nothing was exported; whether the ledger has an entry is not known",
        )

    def rotate(self, model: str) -> None:
        """Have all versions of a model sealed under a new key; returns when that is done.

        :raises FedlearnError: as :meth:`server.store.models.ModelStore.rotate`.
        """
        request = {"do": "rotate", "model": model}
        self._ask(request, ended="the rotation may not be complete; rotate again")

    def _ask(self, request: Mapping[str, Any], *, ended: str) -> None:
        try:
            with self._connect() as connection:
                connection.settimeout(_GREETING_SECONDS)
                greeting = receive(connection)
                nonce = _nonce(greeting)
                proven: dict[str, Any] = {"key": self._key, "nonce": nonce}
                send_proven(connection, request, side=REQUEST, **proven)
                # A large model is sealed again for as long as that takes.
                connection.settimeout(None)
                reply = receive_proven(connection, side=REPLY, **proven)
        except (EOFError, ConnectionError, FileNotFoundError):
            raise StoreError(
                f"the coordinator stopped before it answered: {ended}", hint="run the same again"
            ) from None
        except TimeoutError:
            raise StoreError(
                "the coordinator does not answer on its maintenance socket",
                hint="another request may be under way; run the same again",
            ) from None
        if reply.get("done") != request["do"]:
            kind = ERRORS_BY_CODE.get(str(reply.get("code")), StoreError)
            raise kind(str(reply.get("message", "")), hint=str(reply.get("hint", "")))

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(self._state) as path:
                connection.connect(path)
        except BaseException:
            connection.close()
            raise
        return connection


def _nonce(greeting: Mapping[str, Any]) -> bytes:
    if "refused" in greeting:
        raise _another_user(str(greeting["refused"]))
    if greeting.get("version") != VERSION:
        raise TransportError(
            "the coordinator speaks another version on its maintenance socket",
            hint="use the release that the coordinator runs",
        )
    try:
        return bytes.fromhex(str(greeting.get("nonce")))
    except ValueError:
        raise TransportError("the coordinator sent no nonce") from None


def _another_user(reason: str) -> StoreError:
    return StoreError(
        f"the coordinator takes requests of its own user only: {reason}",
        hint="run the command as that user",
    )
