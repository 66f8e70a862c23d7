"""Credential activation with enrolled sites: whose evidence an attestation key may sign.

A site names the endorsement key (EK) and the attestation key (AK) of its TPM, and gets a
secret that only the TPM of that EK can open, and only while it holds that AK
(:mod:`attestation.tpm.credential`). What it proves is kept by the site registry, and
counts for this site alone.

A challenge is good once, for 60 s, for the site that asked; asking again voids the former.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from attestation.errors import EndorsementError, EvidenceError
from attestation.tpm.credential import ActivationChallenge, TpmIdentity, challenge_identity
from attestation.trust import TrustAnchors
from fedlearn.errors import EnrollmentRefused, NonceRefused, Throttled
from server.identity.site import SiteStatus
from server.identity.site_registry import SiteRegistry

__all__ = ["CHALLENGE_LIFETIME", "Outcome", "Proposal", "TpmEnrollment"]

CHALLENGE_LIFETIME: Final = timedelta(seconds=60)
_CHALLENGE_BYTES: Final = 32
_MAX_OPEN: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What goes to the site: a name for the challenge, what its TPM is to open, until when."""

    challenge: bytes
    blob: bytes
    expires: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a proof.

    ``accepted``     evidence of this AK counts for this site from now on; otherwise the
                     operator has to approve the EK, and the site is pending
    ``endorsement``  why the EK is trusted (:class:`server.identity.site_tpm.SiteTpm`), or
                     ``pinned`` where the operator pinned the AK itself
    """

    accepted: bool
    endorsement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    proposal: Proposal
    activation: ActivationChallenge
    certificate: str


class TpmEnrollment:
    """Challenges that are outstanding, one for each site. Safe to use from many threads.

    :param trust: roots for certificates of EKs, intermediates, and AKs that are pinned.
    """

    def __init__(
        self,
        *,
        sites: SiteRegistry,
        trust: Callable[[], TrustAnchors],
        clock: Callable[[], datetime],
    ) -> None:
        self._sites = sites
        self._trust = trust
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def show(self, site: str, identity: bytes) -> None:
        """Note the TPM that a pending site claims to have, so that the operator can see it.

        :raises AttestationError: when ``identity`` is malformed, or its keys of a wrong kind.
        """
        activation, certificate = self._challenge(identity)
        self._sites.tpms.show(site, ek=activation.proven.ek, certificate=certificate)

    def propose(self, site: str, identity: bytes) -> Proposal:
        """Return a challenge for the keys that ``site`` names.

        :raises EvidenceError: when ``identity`` is malformed.
        :raises EndorsementError: when a key is of a kind that proves nothing.
        :raises Throttled: when too many challenges are outstanding.
        """
        activation, certificate = self._challenge(identity)
        now = self._clock()
        proposal = Proposal(
            challenge=secrets.token_bytes(_CHALLENGE_BYTES),
            blob=activation.blob,
            expires=now + CHALLENGE_LIFETIME,
        )
        with self._lock:
            for name in [n for n, o in self._open.items() if o.proposal.expires <= now]:
                del self._open[name]
            if site not in self._open and len(self._open) >= _MAX_OPEN:
                raise Throttled("too many TPMs are being enrolled", hint="try again in a minute")
            self._open[site] = _Open(
                proposal=proposal, activation=activation, certificate=certificate
            )
        return proposal

    def shift(self, by: timedelta) -> None:
        """Move the expiry of every challenge: the clock of the system was changed."""
        with self._lock:
            for site, one in self._open.items():
                expires = one.proposal.expires + by
                self._open[site] = replace(one, proposal=replace(one.proposal, expires=expires))

    def prove(self, site: str, challenge: bytes, secret: bytes) -> Outcome:
        """Take the answer to a challenge, which is used up whatever it is.

        :raises NonceRefused: when ``challenge`` is not outstanding for ``site``.
        :raises EnrollmentRefused: when the answer is wrong, or the TPM is another site's.
        """
        with self._lock:
            found = self._open.get(site)
            known = found is not None and secrets.compare_digest(
                found.proposal.challenge, challenge
            )
            if known:
                del self._open[site]
        if found is None or not known:
            raise NonceRefused(
                f"site {site} has no such challenge for its TPM: used before, void or stale",
                hint="propose the TPM again",
            )
        if self._clock() >= found.proposal.expires:
            raise NonceRefused("the challenge for the TPM is stale", hint="answer within 60 s")
        try:
            proven = found.activation.prove(secret)
        except EndorsementError as error:
            self._sites.tpms.refuse(site, found.activation.proven, str(error))
            raise EnrollmentRefused(f"site {site}: {error}", hint=error.hint) from error
        tpm = self._sites.tpm(site)
        if not tpm.ek and not tpm.trusts(proven) and proven.ak in self._trust().tpm_aks:
            return Outcome(accepted=True, endorsement="pinned")
        after = self._sites.tpms.prove(site, proven, certificate=found.certificate)
        return Outcome(
            accepted=after.status is not SiteStatus.PENDING,
            endorsement=self._sites.tpm(site).endorsement,
        )

    def _challenge(self, identity: bytes) -> tuple[ActivationChallenge, str]:
        """Return a challenge and, in words, what was found of the EK's certificate.

        An EK without a trusted certificate gets one as well: the site registry and the operator
        decide whether to trust it, once it is proven that its TPM has the AK.
        """
        shown = TpmIdentity.from_bytes(identity)
        trust, now = self._trust(), self._clock()
        if not shown.ek_certificate:
            found = "none"
        elif not trust.tpm_ek_roots:
            found = "not looked at: no trust.tpm_ek_roots were given"
        else:
            try:
                activation = challenge_identity(
                    shown, now=now, roots=trust.tpm_ek_roots, intermediates=trust.endorsements
                )
            except (EndorsementError, EvidenceError) as error:
                found = str(error)
            else:
                return activation, "verified"
        return challenge_identity(shown, now=now, insecure_first_use=True), found
