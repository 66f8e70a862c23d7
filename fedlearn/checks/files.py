"""Certificates, ports, folders and secrets that a configuration names."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from attestation.endorsements.offline import readable_certificates
from fedlearn.checks import Check, fail, ok, warn

__all__ = ["certificates", "folder", "new_secret", "port", "secret"]

_MAX_FILES: Final = 2000
_MAX_BYTES: Final = 256 * 1024
_SUFFIXES: Final = frozenset({".crt", ".pem", ".cert"})


def certificates(state: Path, now: datetime | None = None) -> Iterator[Check]:
    """Check that the certificates below ``state`` are valid now, and do not expire soon."""
    moment = now or datetime.now(UTC)
    count = 0
    for path in _certificate_files(state):
        for certificate in readable_certificates(path.read_bytes()):
            count += 1
            check = _validity(path, certificate, moment)
            if check is not None:
                yield check
    if count:
        yield ok("certificates", f"{count} checked in {state}")


def _certificate_files(state: Path) -> Iterator[Path]:
    if not state.is_dir():
        return
    for seen, path in enumerate(state.rglob("*")):
        if seen >= _MAX_FILES:
            return
        if path.suffix in _SUFFIXES and path.is_file() and path.stat().st_size <= _MAX_BYTES:
            yield path


def _validity(path: Path, certificate: x509.Certificate, now: datetime) -> Check | None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        return fail("certificates", f"{path} is valid from {start} on", "check the clock")
    if now > end:
        return fail("certificates", f"{path} expired at {end}", "renew it, or enroll again")
    if end - now < min(timedelta(days=7), (end - start) / 5):
        return warn("certificates", f"{path} expires at {end}", "check that renewal works")
    return None


def port(address: str, *, name: str) -> Check:
    """Check that ``address`` can be bound: bind it, and release it at once."""
    host, _, number = address.rpartition(":")
    host = host.strip("[]")
    what = f"{name} {address}"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, int(number), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        mend = "name an address of this machine"
        return fail("port", f"{what}: {(error.strerror or 'unknown').lower()}", mend)
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(1)
        except OSError as error:
            return _port_failure(what, error)
    return ok("port", f"{what} is free")


def _port_failure(what: str, error: OSError) -> Check:
    if error.errno == errno.EADDRINUSE:
        mend = "a coordinator may be running already; otherwise choose another port"
        return fail("port", f"{what} is in use", mend)
    if error.errno == errno.EACCES:
        return fail("port", f"{what}: not allowed", "choose a port above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return fail("port", f"{what}: not an address of this machine", "listen on 0.0.0.0 or [::]")
    return fail("port", f"{what}: {(error.strerror or 'unknown').lower()}", "check the network")


def folder(
    path: Path,
    *,
    name: str,
    private: bool = False,
    write: bool = True,
    mend: str = "correct the path, or create it",
) -> Check:
    """Check that a folder exists and is usable, or can be created.

    ``mend`` is what to do where something that is only read does not exist.
    """
    if not path.exists():
        parent = path.absolute()
        while not parent.exists():
            parent = parent.parent
        if not write:
            return fail(name, f"{path} does not exist", mend)
        if not os.access(parent, os.W_OK | os.X_OK):
            return fail(
                name, f"{path} cannot be created in {parent}", "name a folder that can be written"
            )
        return ok(name, f"{path} will be created")
    if write and not path.is_dir():
        return fail(name, f"{path} is not a folder", "name a folder")
    wanted = os.R_OK | (os.W_OK if write else 0) | (os.X_OK if path.is_dir() else 0)
    if not os.access(path, wanted):
        return fail(name, f"{path} may not be used by this user", "check owner and permissions")
    mode = stat.S_IMODE(path.stat().st_mode)
    if private and mode & 0o077:
        return fail(
            name, f"{path} is accessible to other users (mode {mode:03o})", f"chmod 700 {path}"
        )
    return ok(name, str(path))


def new_secret(path: Path) -> str:
    """Return the command that makes a file with a random passphrase."""
    return f"(umask 077; head -c 32 /dev/urandom | base64 > {path})"


def secret(path: Path, *, name: str) -> Check:
    """Check that a file with a secret exists, and that other users cannot read it."""
    try:
        status = path.stat()
    except OSError as error:
        reason = (error.strerror or "unknown").lower()
        return fail(name, f"{path}: {reason}", f"correct the path, or make one: {new_secret(path)}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return fail(
            name, f"{path} is accessible to other users (mode {mode:03o})", f"chmod 600 {path}"
        )
    if not os.access(path, os.R_OK):
        return fail(name, f"{path} may not be read by this user", "check its owner")
    return ok(name, str(path))
