"""The release of the seed of a commitment, from a site to its admitted client, sealed.

The seed hides a site's records in the root, which is public (:mod:`fedlearn.update.commitment`).
Everyone who may read a client's pod can read what the client is started with, so the seed is not
in it::

    request = LP(chain) | LP(hpke) | LP(sign(client's TLS key, ask))
    ask     = "fedlearn-seed-request/1\\0" | LP(job) | LP(site) | LP(client) | LP(hpke)
    reply   = LP(chain) | LP(sealed) | LP(sign(site's key, answer))
    sealed  = HPKE(hpke, info = ask, seed)
    answer  = "fedlearn-seed-reply/1\\0" | LP(ask) | LP(sealed)         LP(x) = u32be(len x) | x

The site releases the seed to the holder of a certificate that the coordinator issued for this
client, whose evidence was therefore affirmed. A launch ticket alone is not enough. The client
accepts the seed only from the site that this coordinator, which it has verified, enrolled. So
nobody in between can read the seed, or choose a seed that is known to them. Signatures are ECDSA
P-256, SHA-256, DER; sealing is that of RFC 9180 as in :mod:`fedlearn.sealing`.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, x25519

from attestation.durable import sync_directory, write_once
from attestation.errors import AttestationError
from attestation.length_prefixed import pack
from edge.protocol.peer import ECDSA, check_signature, identified
from fedlearn.errors import LaunchError
from fedlearn.identity.spiffe import ClientId, SiteId
from fedlearn.sealing.keys import PUBLIC_KEY_BYTES, hpke_open, hpke_seal
from fedlearn.update.commitment import SEED_BYTES

__all__ = ["MAX_GRANT_BYTES", "Client", "grant_seed", "kept_seed", "open_grant", "request_seed"]

MAX_GRANT_BYTES: Final = 32 * 1024
_ASK: Final = b"fedlearn-seed-request/1\0"
_ANSWER: Final = b"fedlearn-seed-reply/1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """The client whose seed it is."""

    job: str
    site: str
    client: str


def request_seed(
    who: Client,
    *,
    chain: bytes,
    key: ec.EllipticCurvePrivateKey,
    hpke_key: bytes,
) -> bytes:
    """Return a client's request. ``chain`` is its certificate (PEM), ``key`` the key in it.

    ``hpke_key`` is the raw X25519 public key that the seed is to be sealed to.
    """
    return pack(chain, hpke_key, key.sign(_ask(who, hpke_key), ECDSA))


def grant_seed(
    request: bytes,
    who: Client,
    *,
    seed: bytes,
    ca_pem: bytes,
    chain: bytes,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> bytes:
    """Return a site's reply to ``request``.

    :param ca_pem: the CA of the coordinator that this site follows.
    :param chain: the site's certificate (PEM), and ``key`` the key in it.
    :raises LaunchError: when the request is not from this client, or it is not admitted now.
    """
    shown, hpke_key, signature = _unpack(request, "the request for a seed")
    identity, public = identified(shown, ca_pem, now, "the client")
    ours = (who.job, who.site, who.client)
    if not isinstance(identity, ClientId) or (identity.job, identity.site, identity.client) != ours:
        raise LaunchError(f"{identity} is not the client whose seed this is")
    if len(hpke_key) != PUBLIC_KEY_BYTES:
        raise LaunchError("the request for a seed is malformed")
    check_signature(public, signature, _ask(who, hpke_key), "the request for a seed")
    try:
        sealed = hpke_seal(seed, hpke_key, info=_ask(who, hpke_key))
    except ValueError as error:
        raise LaunchError("the seed cannot be sealed to the client's key") from error
    return pack(chain, sealed, key.sign(_answer(who, hpke_key, sealed), ECDSA))


def open_grant(
    reply: bytes,
    who: Client,
    *,
    ca_pem: bytes,
    hpke: x25519.X25519PrivateKey,
    now: datetime,
) -> bytes:
    """Return the seed, 32 bytes.

    :param ca_pem: the CA of the coordinator that this client has verified.
    :raises LaunchError: when the reply is not from this client's site, or not for this key.
    """
    hpke_key = hpke.public_key().public_bytes_raw()
    shown, sealed, signature = _unpack(reply, "the reply with the seed")
    identity, public = identified(shown, ca_pem, now, "the site")
    if not isinstance(identity, SiteId) or identity.site != who.site:
        raise LaunchError(f"{identity} is not the site {who.site}")
    check_signature(public, signature, _answer(who, hpke_key, sealed), "the reply with the seed")
    try:
        seed = hpke_open(sealed, hpke, info=_ask(who, hpke_key))
    except AttestationError as error:
        raise LaunchError(f"the seed cannot be opened: {error}") from error
    if len(seed) != SEED_BYTES:
        raise LaunchError(f"the seed has {len(seed)} bytes")
    return seed


def _ask(who: Client, hpke_key: bytes) -> bytes:
    return _ASK + pack(who.job.encode(), who.site.encode(), who.client.encode(), hpke_key)


def _answer(who: Client, hpke_key: bytes, sealed: bytes) -> bytes:
    return _ANSWER + pack(_ask(who, hpke_key), sealed)


def _unpack(data: bytes, what: str) -> Sequence[bytes]:
    """Return the three fields of a message."""
    if len(data) > MAX_GRANT_BYTES:
        raise LaunchError(f"{what} has {len(data)} bytes; at most {MAX_GRANT_BYTES} are read")
    fields: list[bytes] = []
    rest = data
    while len(rest) >= 4:
        (length,) = struct.unpack(">I", rest[:4])
        if len(rest) < 4 + length:
            break
        fields.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    if rest or len(fields) != 3:
        raise LaunchError(f"{what} is malformed")
    return fields


def kept_seed(state: Path, job: str) -> bytes:
    """Return the secret that hides this site's records; it is the same for the whole job."""
    folder = state / "commitments"
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(state)
    path = folder / f"{job}.seed"
    if path.exists():
        return path.read_bytes()
    return write_once(path, secrets.token_bytes(SEED_BYTES))
