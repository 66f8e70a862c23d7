"""The agent of a site: it connects to the coordinator, and follows the orders on that stream.

The agent opens the one stream, so a site needs no open port. A stream that ended is opened again;
clients continue meanwhile. Where nobody answers, an attempt follows every few seconds, so that the
agent is connected within five seconds of a coordinator that answers. After a coordinator that
answers and refuses, the pauses grow. :mod:`edge.agent.orders` states which orders are followed.

An agent whose site is no longer enrolled stops all clients, and ends.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from attestation.errors import AttestationError
from edge.agent.agent_log import ConnectionLog
from edge.agent.assignments import AssignmentTable, StatusSender
from edge.agent.budget_store import BudgetStore
from edge.agent.certificate import SiteCertificate
from edge.agent.client_callbacks import ClientCallbacks
from edge.agent.orders import OrderHandler
from edge.agent.sealed_file import MonotonicCounter, file_key
from edge.agent.tpm_activation import OwnTpm, prove_tpm
from edge.config.site import SiteConfig
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import ControlClient
from edge.protocol.site_stream import Reports
from edge.protocol.workload import Launcher
from fedlearn import __version__
from fedlearn.backoff import Backoff
from fedlearn.errors import FedlearnError, NotApproved, NotEnrolled
from fedlearn.wire.channel import HEARTBEAT_SECONDS
from fedlearn.wire.failure import Unreachable

__all__ = ["Agent"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 60.0
_LONGEST_UNANSWERED: Final = 2.0
"""Between two attempts that reach nobody, in seconds."""


_MOST_BUNDLES: Final = 1000
"""A site with more accepted bundles does not report them."""


class Agent:
    """One site's agent. ``run`` returns when ``stop`` is called, or the site was removed.

    :param launcher: makes a launcher that uses these callbacks.
    :param tpm: this machine's TPM, which the agent proves before it takes orders.
    :param counter: of that TPM; it detects an older copy of the privacy budget.
    """

    def __init__(
        self,
        config: SiteConfig,
        identity: SiteIdentity,
        *,
        launcher: Callable[[ClientCallbacks], Launcher],
        tpm: OwnTpm | None = None,
        counter: MonotonicCounter | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._tpm = tpm
        self._proven = False
        self._settled = False
        self._answered = False
        self._log = ConnectionLog(identity.site)
        self._stopped = threading.Event()
        self._budget = BudgetStore(config, file_key(identity.key), counter=counter)
        self._certificate = SiteCertificate(identity, state=config.state, tpm=tpm, now=now)
        self._sender = StatusSender()
        table = AssignmentTable()
        callbacks = ClientCallbacks(
            self._certificate,
            state=config.state,
            table=table,
            budget=self._budget,
            sender=self._sender,
            now=now,
        )
        self._launcher = launcher(callbacks)
        self._orders = OrderHandler(
            config,
            self._certificate,
            self._launcher,
            table=table,
            budget=self._budget,
            sender=self._sender,
            stopped=self._stopped,
            now=now,
        )

    def stop(self) -> None:
        """Make :meth:`run` return; safe from a signal handler's thread."""
        self._stopped.set()
        stream = self._sender.stream
        if stream is not None:
            stream.close()

    def run(self) -> None:
        """Follow the coordinator until :meth:`stop`.

        :raises NotEnrolled: when the coordinator does not know the site any more. All of its
            clients were stopped then.
        """
        try:
            self._keep_following()
        except NotEnrolled as error:
            _LOG.error("%s; its clients are stopped", error)
            self._stopped.set()
            self._orders.end_all(str(error))
            raise
        finally:
            self._stopped.set()
            self._launcher.close()

    def _keep_following(self) -> None:
        backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        while not self._stopped.is_set():
            self._answered = False
            longest = None
            try:
                self._certificate.renew_if_due()
                if self._follow():
                    continue
            except NotEnrolled:
                raise
            except NotApproved as error:
                self._log.waits_for_approval(error)
            except Unreachable as error:
                self._log.failed("the coordinator does not answer", error)
                longest = _LONGEST_UNANSWERED
            except (FedlearnError, AttestationError) as error:
                self._log.failed("the stream ended", error)
            if self._answered:
                backoff.reset()
            self._stopped.wait(backoff.next(longest=longest))

    def _follow(self) -> bool:
        """Take orders until the stream ends; return whether it ended for a new certificate only."""
        running = self._launcher.running()
        if not self._settled:
            self._budget.settle_others(running)
            self._settled = True
        reports = Reports(version=__version__, running=running)
        self._sender.stream = reports
        if self._stopped.is_set():
            return False
        over = threading.Event()
        with ControlClient.of_site(self._certificate.identity) as control:
            self._prove_tpm(control)
            reports.capabilities(json.dumps(self._capabilities()))
            beats = threading.Thread(target=self._beat, args=(reports, control, over), daemon=True)
            beats.start()
            try:
                for order in control.follow(reports, answered=self._note_answer):
                    self._orders.take(order, control)
            finally:
                over.set()
                reports.close()
                self._sender.stream = None
        return reports.finished and not self._stopped.is_set()

    def _note_answer(self) -> None:
        """Record that the coordinator accepted the stream, even if it ends with an error later."""
        if not self._answered:
            self._answered = True
            self._log.connected()

    def _capabilities(self) -> dict[str, object]:
        """Return what this site can run: what its launcher finds, within the caps of the site."""
        found: dict[str, object] = dict(self._launcher.capabilities())
        caps = self._config.caps
        for name, cap in (("cpu", caps.cpu), ("memory_mib", caps.memory_mib), ("gpu", caps.gpu)):
            has = found.get(name)
            if isinstance(has, int | float):
                found[name] = min(has, cap)
        found["data"] = sorted(self._config.data)
        found["jobs"] = caps.jobs
        if caps.cost is not None:
            found["cost"] = caps.cost
        accept = self._config.accept
        bundles = sorted(each.hex() for each in accept.bundles)
        found["accept"] = {
            **({"bundles": bundles} if len(bundles) <= _MOST_BUNDLES else {}),
            "other_bundles": accept.other_bundles,
            "approval": accept.approval,
            "visible_updates": accept.visible_updates,
            "app_logs": accept.app_logs,
            "filters": [each.kind for each in self._config.privacy.filters],
            "policy_keys": sorted(each.hex() for each in accept.policy_keys),
        }
        return found

    def _prove_tpm(self, control: ControlClient) -> None:
        """Prove this machine's TPM, once in the agent's life: its keys stay the same."""
        if self._tpm is not None and not self._proven:
            prove_tpm(control, self._tpm, site=self._certificate.identity.site)
            self._proven = True

    def _beat(self, reports: Reports, control: ControlClient, over: threading.Event) -> None:
        while not over.wait(self._certificate.seconds_until_check(HEARTBEAT_SECONDS)):
            try:
                reports.heartbeat()
                if self._certificate.renew_if_due(control):
                    # A stream ends with the certificate that opened it. The next one is opened
                    # with the new certificate while the former is still valid.
                    reports.finish()
                    return
            except FedlearnError as error:
                _LOG.info("a heartbeat was not sent: %s", error)
