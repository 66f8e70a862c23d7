"""An operator's login: one folder with an address, a certificate and a key.

::

    coordinator.toml   address = "host:port" of the coordinator's control listener
    ca.pem             the coordinator's CA; nothing else is trusted
    operator.pem       the operator's certificate chain, leaf first
    operator.key       the operator's private key (PKCS#8, PEM), readable by its owner only

A coordinator writes the first one; more are issued for other operators.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from fedlearn import config
from fedlearn.config import address, option
from fedlearn.errors import ConfigError

__all__ = ["ENVIRONMENT", "OperatorLogin", "default_folder"]

ENVIRONMENT: Final = "FEDLEARN_OPERATOR"
"""The environment variable that names the folder."""

_MAX_PEM_BYTES: Final = 256 * 1024
_SETTINGS: Final = "coordinator.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    address: str = option(address())


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorLogin:
    """What a command needs to speak to a coordinator; PEM bytes."""

    address: str
    ca: bytes
    chain: bytes
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the login in ``folder``.

        :raises ConfigError: when a file is missing or wrong, or others could read the key.
        """
        if not folder.is_dir():
            raise ConfigError(
                "no operator login here",
                where=str(folder),
                hint="name the folder that the coordinator wrote: --operator DIR, "
                f"or {ENVIRONMENT} in the environment",
            )
        settings = config.read_file(_Settings, folder / _SETTINGS)
        key_file = folder / "operator.key"
        key = _pem(key_file, "PRIVATE KEY")
        mode = stat.S_IMODE(key_file.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(
                f"others on this machine may read this key (mode {mode:03o})",
                where=str(key_file),
                hint=f"chmod 600 {key_file}",
            )
        return cls(
            address=settings.address,
            ca=_pem(folder / "ca.pem", "CERTIFICATE"),
            chain=_pem(folder / "operator.pem", "CERTIFICATE"),
            key=key,
        )

    def save(self, folder: Path) -> None:
        """Write a new folder, whole or not at all, that only its owner can enter.

        :raises ConfigError: when the folder exists.
        """
        if folder.exists():
            raise ConfigError("exists", where=str(folder), hint="name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            files = {
                _SETTINGS: config.dumps({"address": self.address}).encode(),
                "ca.pem": self.ca,
                "operator.pem": self.chain,
                "operator.key": self.key,
            }
            for name, data in files.items():
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with open(os.open(scratch / name, flags, 0o600), "wb") as file:  # noqa: PTH123
                    file.write(data)
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def default_folder() -> Path:
    """Return the folder that ``FEDLEARN_OPERATOR`` names, or the one in the user's settings."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    settings = os.environ.get("XDG_CONFIG_HOME")
    base = Path(settings) if settings else Path.home() / ".config"
    return base / "fedlearn" / "operator"


def _pem(path: Path, label: str) -> bytes:
    data = config.file_bytes(path, limit=_MAX_PEM_BYTES)
    if label.encode() not in data or b"-----BEGIN " not in data:
        raise ConfigError(f"holds no {label.lower()} in PEM", where=str(path))
    return data
