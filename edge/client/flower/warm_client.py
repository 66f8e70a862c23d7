"""The warm client works until the job ends, and loads the app once, in another process.

It replaces Flower's SuperNode, which starts a process for each message. The certificate, the keys
and the connections are here. :mod:`edge.client.flower.replies` calls the app and makes the replies.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge.client.app_log import AppLog
from edge.client.flower.fleet import HEARTBEAT_SECONDS, Ended, Fleet, Identity, Work
from edge.client.flower.masking import FleetCredentials
from edge.client.flower.replies import ClientPlan, Replies
from edge.client.flower.state_store import StateStore
from fedlearn.app.message import Flat
from fedlearn.backoff import Backoff, retry
from fedlearn.errors import FedlearnError, TransportError, UpdateRejected

__all__ = ["ClientPlan", "Identity", "WarmClient"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class WarmClient:
    """One client of one job.

    :param directory: a private folder for the app; it must not exist.
    :param address: ``host:port`` of the coordinator's fleet server.
    :param charge: ``charge(question)`` charges an update to the budget of the site's data before
        it leaves under privacy; if it raises, the update does not leave.
    :param log: takes what the app writes; by default it is discarded.
    :param store: keeps the state of the client for the one after it.
    """

    def __init__(
        self,
        plan: ClientPlan,
        *,
        address: str,
        identity: Identity,
        directory: Path,
        charge: Callable[[str], object],
        log: AppLog | None = None,
        store: StateStore | None = None,
    ) -> None:
        self._plan = plan
        self._fleet = Fleet(address, identity, max_message_bytes=plan.max_message_bytes)
        self._credentials = FleetCredentials(identity, plan.spec.name)
        self._replies = Replies(
            plan,
            directory=directory,
            charge=charge,
            log=log,
            credentials=self._credentials,
            store=store,
        )
        self._last: tuple[str, Flat] | None = None
        self._stop = threading.Event()

    def load(self) -> None:
        """Load the app, once; :meth:`run` loads it if it was not loaded before.

        Call it before the admission is needed: importing torch takes longer than a handshake.

        :raises FedlearnError: see :meth:`edge.client.flower.replies.Replies.load`.
        """
        self._replies.load()

    def renew(self, identity: Identity) -> None:
        """Use a new certificate; the current work continues."""
        self._credentials.renew(identity)
        self._fleet.renew(identity)

    def stop(self) -> None:
        """Make :meth:`run` return after the current call.

        This client does not report that it leaves: a client that was evicted starts elsewhere,
        and the coordinator sends it again what it did not answer. The agent reports the end.
        """
        self._stop.set()

    def close(self) -> None:
        """End the app's process, and all that it started."""
        self._replies.close()

    def run(self) -> str:
        """Work until the job ends or :meth:`stop` is called; return why it ended.

        May be called again after AdmissionDenied and :meth:`renew`: the app and its state are
        still there.

        :raises AdmissionDenied: when the coordinator does not accept the certificate.
        :raises TransportError: when it was unreachable for longer than the plan's patience.
        """
        self.load()
        beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        done = threading.Event()
        self._done = done
        try:
            self._retry(self._enter)
            beats.start()
            while not self._stop.is_set():
                work = self._retry(self._fleet.fetch)
                if work is not None:
                    self._handle(work)
            self.close()
            return "stopped"
        except Ended as ended:
            self.close()
            return str(ended)
        finally:
            done.set()

    # Around the work

    def _enter(self) -> None:
        self._replies.node, self._replies.run = self._fleet.activate()

    def _retry(self, action: Callable[[], _T]) -> _T | None:
        """Repeat ``action`` until it succeeds or the plan's patience ends; None when stopped."""
        try:
            return retry(
                action,
                failures=(TransportError,),
                seconds=self._plan.patience,
                backoff=Backoff(first=0.05, longest=2.0),
                wait=self._stop.wait,
            )
        except TransportError:
            if self._stop.is_set():
                return None
            raise

    def _beat(self) -> None:
        done = self._done
        while not done.wait(HEARTBEAT_SECONDS / 3):
            try:
                self._fleet.heartbeat()
            except FedlearnError as error:
                # The call that fetches work receives the same answer and handles it.
                _LOG.info("a heartbeat was not accepted: %s", error)

    # The work

    def _handle(self, work: Work) -> None:
        if self._last is None or self._last[0] != work.id:
            self._last = (work.id, self._replies.reply(work))
        try:
            delivered = self._deliver(self._last[1])
        except UpdateRejected as error:
            _LOG.warning("the reply was not sent: %s", error)
            self._last = (work.id, self._replies.failure(work, str(error)))
            delivered = self._deliver(self._last[1])
        if delivered is False:
            _LOG.info("the reply was too late")

    def _deliver(self, flat: Flat) -> bool | None:
        return self._retry(lambda: self._fleet.deliver(flat))
