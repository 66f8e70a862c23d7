"""Enrolling this machine as a site: the join token in a file, redeemed for a key made here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import enroll
from fedlearn.errors import ConfigError, EnrollmentRefused
from fedlearn.identity.join import JoinToken

__all__ = ["check_place", "read_token", "redeem"]

_MAX_TOKEN_FILE: Final = 4096


def read_token(path: Path) -> str:
    """Return the join token in a file, or on standard input where ``path`` is ``-``.

    :raises ConfigError: when the file cannot be read, or holds no join token.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(_MAX_TOKEN_FILE + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_TOKEN_FILE + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), key="--token-file"
        ) from error
    try:
        if len(data) > _MAX_TOKEN_FILE:
            raise ValueError
        text = data.decode("ascii").strip()
    except ValueError:
        raise ConfigError(
            "does not contain a join token",
            where=str(path),
            hint="save the line that `fedlearn site token` printed, and nothing else",
        ) from None
    JoinToken.parse(text)
    return text


def check_place(token: str, state: Path) -> SiteIdentity | None:
    """Return the identity in a state directory, if there is one; it must be of the token's site.

    :raises ConfigError: when it is another site's.
    """
    known = SiteIdentity.load(state) if (state / "site.json").exists() else None
    site = JoinToken.parse(token).site
    if known is not None and known.site != site:
        raise ConfigError(
            f"site {known.site} is enrolled here, and the token is for {site}",
            where=str(state),
            hint="name another folder with --state",
        )
    return known


def redeem(token: str, state: Path) -> SiteIdentity:
    """Redeem a token with the key of a state directory, which is made where there is none.

    The result may be pending: call it again after the operator's approval.

    :raises ConfigError: when another site is enrolled there.
    :raises EnrollmentRefused: when the coordinator does not accept it. A new key is deleted then.
    :raises TransportError: when the coordinator is not the one that made the token.
    """
    known = check_place(token, state)
    try:
        identity = enroll(token, identity=known, keep=lambda made: made.save(state))
    except EnrollmentRefused:
        if known is None:
            SiteIdentity.discard(state)
        raise
    identity.save(state)
    return identity
