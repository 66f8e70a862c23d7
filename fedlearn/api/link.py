"""The connection below a :class:`~fedlearn.api.connection.Connection` and its runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedlearn.identity.login import OperatorLogin

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient
    from server.ledger import VerifiedLedger

__all__ = ["Link"]


class Link:
    """An operator's login, and the client that uses it, opened when it is needed.

    ``folder`` is where the login is. After :meth:`close` the next use opens it again, with what is
    in the folder then.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self.login = OperatorLogin.load(folder)
        self._client: OperatorClient | None = None

    @property
    def client(self) -> OperatorClient:
        """The operator's client of the coordinator."""
        if self._client is None:
            # gRPC takes a third of a second to import.
            from fedlearn.wire.operator import OperatorClient

            self.login = login = OperatorLogin.load(self.folder)
            self._client = OperatorClient(
                address=login.address, ca=login.ca, chain=login.chain, key=login.key
            )
        return self._client

    def verify_ledger(self) -> VerifiedLedger:
        """Verify every entry of the coordinator's ledger, under the key that its CA signed.

        It must go on from the head that this login verified before; the new head is kept.

        :raises LedgerError: naming the first entry that is wrong or missing.
        """
        from fedlearn.api.remote_ledger import RemoteLedger

        return RemoteLedger(self.client, self.login, self.folder).verify()

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()
            self._client = None
