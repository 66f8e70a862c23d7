"""The TPM of a site: the endorsement key it is bound to, and the attestation key proven beside it.

The first endorsement key is trusted when its certificate chains to a root that was given,
when the invitation named it, or when the operator approves the site after it was shown.
Another one later, whatever its certificate, is another machine, which the operator has to
approve by name.

It is part of what the ledger keeps of a site (:class:`server.identity.site.Site`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from attestation.tpm.credential import ProvenKey
from fedlearn.errors import ConfigError

__all__ = ["SiteTpm", "check_digest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTpm:
    """What is known of one site's TPM. Keys are SHA-256 of their SPKI; empty: there is none.

    ``ek``           the endorsement key that the site is bound to
    ``endorsement``  why it is trusted: ``certificate`` (a manufacturer's, under a root that
                     was given), ``operator`` or ``invitation`` (named by the operator)
    ``ak``           an attestation key that was proven to be in the TPM of ``ek``
    ``shown_ek``     another endorsement key, which waits for the operator's approval
    ``shown_ak``     an attestation key that was proven to be in the TPM of ``shown_ek``
    ``certificate``  what was found of the certificate of the key that was seen last
    """

    site: str
    ek: bytes = b""
    endorsement: str = ""
    ak: bytes = b""
    shown_ek: bytes = b""
    shown_ak: bytes = b""
    certificate: str = ""

    @property
    def proven(self) -> ProvenKey | None:
        """The keys that the site's evidence may be verified with, if it has proven any."""
        if not self.ak:
            return None
        return ProvenKey(ak=self.ak, ek=self.ek, endorsement=self.endorsement)

    def trusts(self, proven: ProvenKey) -> bool:
        """Return whether the endorsement key of ``proven`` needs no approval by the operator."""
        if self.ek:
            return self.ek == proven.ek
        return proven.endorsement == "certificate"

    def after(self, proven: ProvenKey, certificate: str) -> SiteTpm:
        """Return what is known once the site has proven these keys."""
        if self.trusts(proven):
            return SiteTpm(
                site=self.site,
                ek=proven.ek,
                endorsement=self.endorsement or proven.endorsement,
                ak=proven.ak,
                certificate=certificate,
            )
        return replace(
            self, ak=b"", shown_ek=proven.ek, shown_ak=proven.ak, certificate=certificate
        )

    def approved(self, ek: bytes) -> SiteTpm:
        """Return the TPM as the operator's approval binds it.

        ``ek`` is the endorsement key that the operator named; empty: the one that was shown,
        which is refused where the site was bound to another one before.

        :raises ConfigError: when it is not a key that the site has shown.
        """
        if ek and ek not in (self.ek, self.shown_ek):
            shown = (self.shown_ek or self.ek).hex() or "no endorsement key"
            raise ConfigError(
                f"site {self.site} has shown {shown}, not {ek.hex()}",
                key="ek",
                hint=f"compare `fedlearn site show {self.site}` with what its owner reads there",
            )
        if self.shown_ek and self.ek and not ek:
            raise ConfigError(
                f"site {self.site} has another endorsement key than before: {self.shown_ek.hex()}",
                key="ek",
                hint=f"if its machine was replaced: `fedlearn site approve {self.site} "
                f"--ek {self.shown_ek.hex()}`",
            )
        if not self.shown_ek or (ek and ek == self.ek):
            return replace(self, shown_ek=b"", shown_ak=b"")
        return SiteTpm(
            site=self.site,
            ek=self.shown_ek,
            endorsement="operator",
            ak=self.shown_ak,
            certificate=self.certificate,
        )

    def entry(self) -> dict[str, Any]:
        """Return what the ledger keeps of it."""
        return {
            "ek": self.ek.hex(),
            "endorsement": self.endorsement,
            "ak": self.ak.hex(),
            "shown_ek": self.shown_ek.hex(),
            "shown_ak": self.shown_ak.hex(),
            "certificate": self.certificate,
        }

    @classmethod
    def of_entry(cls, site: str, entry: Mapping[str, str]) -> Self:
        """Return what :meth:`entry` wrote.

        :raises KeyError, TypeError, ValueError: when it was not written by this version.
        """
        return cls(
            site=site,
            ek=bytes.fromhex(entry["ek"]),
            endorsement=str(entry["endorsement"]),
            ak=bytes.fromhex(entry["ak"]),
            shown_ek=bytes.fromhex(entry["shown_ek"]),
            shown_ak=bytes.fromhex(entry["shown_ak"]),
            certificate=str(entry["certificate"]),
        )

    def holds(self, *, ek: bytes = b"", ak: bytes = b"") -> bool:
        """Return whether the site is bound to ``ek``, or its proven key is ``ak``."""
        return (bool(ek) and ek == self.ek) or (bool(ak) and ak == self.ak)


def check_digest(digest: bytes, *, what: str = "an endorsement key", key: str = "ek") -> None:
    """Check that the digest of ``what``, where it is given, can be a SHA-256.

    :raises ConfigError: when it cannot.
    """
    if digest and len(digest) != 32:
        raise ConfigError(f"{what} is named by its SHA-256, 32 bytes", key=key)
