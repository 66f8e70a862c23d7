"""Join tokens: a site's one-time credential, with the address and the pin of the coordinator.

::

    "fedlearn-join-" base64url( version:u8=1 | LP8(address) | LP8(site) | ca_pin[32]
                                | secret[32] | first 4 bytes of SHA-256 of all before )

``LP8(x)`` is a length byte and UTF-8. ``ca_pin`` is the SHA-256 of the SPKI of the
coordinator's CA (RFC 7469, section 2.4, has the same pin). The checksum detects
typing mistakes; it is not a protection.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Final, Self

from fedlearn.errors import ConfigError
from fedlearn.identity.spiffe import checked_name

__all__ = ["MAX_TOKEN_CHARS", "JoinToken", "checked_address"]

MAX_TOKEN_CHARS: Final = 1024
_PREFIX: Final = "fedlearn-join-"
_VERSION: Final = 1
_DIGEST_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 4
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,200}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})")


def checked_address(value: str, what: str = "address") -> str:
    """Return ``value`` if it is ``host:port``, an IPv6 host in brackets.

    :raises ConfigError: naming ``what`` otherwise.
    """
    match = _ADDRESS.fullmatch(value) if len(value) <= 255 else None
    if match is None or not 0 < int(match.group(1)) < 65536:
        raise ConfigError(
            f"{value[:80]!a} is not an address",
            key=what,
            hint="write host:port, such as coordinator.example:9443",
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """A parsed token. ``secret`` can be redeemed once; ``repr`` does not show it."""

    address: str
    site: str
    ca_pin: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        checked_address(self.address)
        checked_name(self.site, "site")
        if len(self.ca_pin) != _DIGEST_BYTES or len(self.secret) != _DIGEST_BYTES:
            raise ValueError(f"pin and secret have {_DIGEST_BYTES} bytes")

    @classmethod
    def fresh(cls, *, address: str, site: str, ca_pin: bytes) -> Self:
        """Return a token with a new secret.

        :raises ConfigError: when the address or the site's name is malformed.
        """
        secret = secrets.token_bytes(_DIGEST_BYTES)
        return cls(address=address, site=site, ca_pin=ca_pin, secret=secret)

    def digest(self) -> bytes:
        """Return the SHA-256 of the secret, 32 bytes, which a registry stores instead of it."""
        return hashlib.sha256(b"fedlearn-join/1\0" + self.secret).digest()

    def encode(self) -> str:
        """Return the token as a site's owner receives it."""
        address, site = self.address.encode(), self.site.encode()
        body = bytes([_VERSION, len(address)]) + address + bytes([len(site)]) + site
        body += self.ca_pin + self.secret
        checksum = hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
        return _PREFIX + base64.urlsafe_b64encode(body + checksum).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a token.

        :raises ConfigError: when it is incomplete or mistyped, or of another version.
        """
        mistyped = ConfigError(
            "the join token is incomplete or mistyped",
            key="token",
            hint="copy all of it, as `fedlearn site token` printed it",
        )
        text = text.strip()
        if len(text) > MAX_TOKEN_CHARS or not text.startswith(_PREFIX):
            raise mistyped
        encoded = text.removeprefix(_PREFIX)
        try:
            data = base64.b64decode(
                encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True
            )
        except (binascii.Error, ValueError):
            raise mistyped from None
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest()[:_CHECKSUM_BYTES] != checksum:
            raise mistyped
        if not body or body[0] != _VERSION:
            raise ConfigError(
                "the join token is of another version",
                key="token",
                hint="use the same release of fedlearn as the coordinator",
            )
        try:
            address, rest = _prefixed(body[1:])
            site, rest = _prefixed(rest)
        except (IndexError, ValueError):
            raise mistyped from None
        if len(rest) != 2 * _DIGEST_BYTES:
            raise mistyped
        return cls(
            address=address, site=site, ca_pin=rest[:_DIGEST_BYTES], secret=rest[_DIGEST_BYTES:]
        )


def _prefixed(data: bytes) -> tuple[str, bytes]:
    end = 1 + data[0]
    if len(data) < end:
        raise ValueError("too short")
    return data[1:end].decode(), data[end:]
