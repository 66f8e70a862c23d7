"""The certificate of a site: renewed while it is valid, and obtained again by the join token."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from edge.agent.tpm_activation import OwnTpm
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import ControlClient, enroll
from fedlearn.errors import EnrollmentRefused, NotApproved, NotEnrolled

__all__ = ["SiteCertificate"]

_SHORTEST_CHECK_SECONDS: Final = 0.5


class SiteCertificate:
    """Renews the certificate of a site and saves each new one.

    ``identity`` has the certificate that is in force. It is replaced by one assignment, so that
    other threads may read it at any time.

    :param tpm: its endorsement key and attestation key are shown when the site enrolls again.
    """

    def __init__(
        self,
        identity: SiteIdentity,
        *,
        state: Path,
        tpm: OwnTpm | None,
        now: Callable[[], datetime],
    ) -> None:
        self.identity = identity
        self._state = state
        self._tpm = tpm
        self._now = now

    def renew_if_due(self, control: ControlClient | None = None) -> bool:
        """Renew the certificate after half of its life; enroll again once it has expired.

        :param control: the open connection to use; without one, a connection is made.
        :returns: whether there is a new certificate.
        :raises NotEnrolled: when the coordinator does not accept the join token any more.
        :raises NotApproved: when the site has to be approved first.
        """
        identity, now = self.identity, self._now()
        if identity.renew_at is not None and now < identity.renew_at:
            return False
        if identity.expires is not None and now < identity.expires:
            if control is None:
                with ControlClient.of_site(identity) as own:
                    self._replace(own.renew_site(identity))
            else:
                self._replace(control.renew_site(identity))
            return True
        shown = self._tpm.identity().to_bytes() if self._tpm is not None else b""
        try:
            enrolled = enroll(identity.token, identity=identity, tpm=shown, now=self._now)
        except EnrollmentRefused as refused:
            raise NotEnrolled(str(refused), hint=refused.hint) from refused
        self._replace(enrolled)
        if self.identity.pending:
            raise NotApproved(
                f"site {identity.site} waits for approval",
                hint=f"the coordinator's operator runs `fedlearn site approve {identity.site}`",
            )
        return True

    def seconds_until_check(self, longest: float) -> float:
        """Return when to call :meth:`renew_if_due` next, in seconds, at most ``longest``.

        After half of the certificate's life the calls come so often that several can fail.
        """
        identity, now = self.identity, self._now()
        if identity.renew_at is None or identity.expires is None:
            return longest
        due = (identity.renew_at - now).total_seconds()
        if due <= 0:
            due = (identity.expires - now).total_seconds() / 4
        return min(longest, max(due, _SHORTEST_CHECK_SECONDS))

    def _replace(self, identity: SiteIdentity) -> None:
        identity.save(self._state)
        self.identity = identity
