"""A client from its start to the end of its job. This is what runs inside the TEE.

1. Measure: ``software`` (our own code), ``app`` (the bundle) and ``job`` (its specification)
   into a runtime register, before a line of the app has run.
2. Find the coordinator by its pin and verify *its* evidence by the job's policy.
3. Make keys in memory, attest, and get a certificate for them.
4. Get the seed of the site's commitments, sealed to these keys, and commit to the data: a
   salted Merkle root over its records.
5. Load the app, in a process of its own that holds none of this, and work, round by round.
   In the background: attest again, in time, and see that the data is still what was
   committed to.

When the coordinator was away and has forgotten us, begin again at 2; app and data stay warm.

The page is docs/adr/0007-who-measures.md.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from attestation.attesters import Attester
from attestation.errors import AttestationError
from edge.client.admission import (
    AdmissionParams,
    ClientKeys,
    control_of,
    renew_admission,
    seek_admission,
)
from edge.client.dataset import Tally, records
from edge.client.flower.app_process import AppLimits
from edge.client.flower.fleet import Identity
from edge.client.flower.warm_client import ClientPlan, WarmClient
from edge.protocol.bootstrap import Bootstrap
from edge.protocol.rpc import AdmittedClient, GateClient
from edge.protocol.seed_release import Client, open_grant, request_seed
from edge.protocol.workload import WorkloadApi
from fedlearn.backoff import Backoff, retry
from fedlearn.config.attester import open_attester
from fedlearn.errors import AdmissionDenied, FedlearnError, Throttled, TransportError
from fedlearn.identity.software import software_digest
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec
from fedlearn.sandbox import FULL, protect_this_process
from fedlearn.update.commitment import commit

__all__ = ["Say", "run"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_PATIENCE_SECONDS: Final = 900.0
_MIB: Final = 1024 * 1024
_WEIGHT: Final = "num-examples"

Say = Callable[[Phase, str], None]
"""Tells the agent where this client stands."""


@dataclass(slots=True)
class _Admitted:
    """An admission in force, with its channels."""

    gate: GateClient
    membership: AdmissionParams
    admitted: AdmittedClient

    def close(self) -> None:
        self.gate.close()


def run(
    bootstrap: Bootstrap,
    sponsor: WorkloadApi,
    *,
    say: Say,
    stop: threading.Event,
    scratch: Path,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Phase:
    """Run a client until its job ends or ``stop`` is set; return how it ended.

    :param scratch: a private folder for the unpacked app; it must not exist.
    """
    # Keys, data and weights are in this memory in the clear.
    protect_this_process()
    os.umask(0o077)
    client = _Client(bootstrap, sponsor, say=say, stop=stop, scratch=scratch, now=now)
    try:
        reason = client.run()
    except AdmissionDenied as denied:
        say(Phase.REFUSED, str(denied))
        return Phase.REFUSED
    except (FedlearnError, AttestationError) as error:
        say(Phase.FAILED, f"{error}{f' ({error.hint})' if error.hint else ''}")
        return Phase.FAILED
    phase = Phase.STOPPED if stop.is_set() else Phase.SUCCEEDED
    say(phase, reason)
    return phase


class _Client:
    def __init__(
        self,
        bootstrap: Bootstrap,
        sponsor: WorkloadApi,
        *,
        say: Say,
        stop: threading.Event,
        scratch: Path,
        now: Callable[[], datetime],
    ) -> None:
        self._bootstrap = bootstrap
        self._sponsor = sponsor
        self._say = say
        self._stop = stop
        self._scratch = scratch
        self._now = now
        self._read = bootstrap.read()
        self._job: JobSpec = self._read.spec
        self._seed: bytes | None = None
        self._opened: WarmClient | None = None

    def run(self) -> str:
        """Do all of it; return why it is over. No process of the app is left then."""
        try:
            return self._run()
        finally:
            if self._opened is not None:
                self._opened.close()

    def _run(self) -> str:
        attester = self._measured()
        standing = self._admitted(attester, patient=False)
        warm = self._warm(standing)
        self._say(Phase.RUNNING, "admitted")
        watcher = threading.Thread(target=self._stop_with, args=(warm,), name="stop", daemon=True)
        watcher.start()
        while True:
            over = threading.Event()
            renewal = threading.Thread(
                target=self._keep_admitted,
                args=(attester, standing, warm, over),
                name="renewal",
                daemon=True,
            )
            renewal.start()
            try:
                return warm.run()
            except AdmissionDenied as denied:
                if self._stop.is_set():
                    return "stopped"
                _LOG.warning("no longer admitted, seeking it again: %s", denied)
            finally:
                over.set()
                renewal.join(30)
                standing.close()
            standing = self._admitted(attester, patient=True)
            warm.renew(_identity(standing))

    # --- before the first round -------------------------------------------------------

    def _measured(self) -> Attester:
        """Step 1."""
        bootstrap, read = self._bootstrap, self._read
        attester = open_attester(
            bootstrap.attester,
            state=bootstrap.state,
            scope=f"{self._job.name}-{read.workload.hex()[:16]}",
        )
        attester.extend("software", software_digest())
        attester.extend("app", read.bundle)
        attester.extend("job", read.digest)
        return attester

    def _admitted(self, attester: Attester, *, patient: bool) -> _Admitted:
        """Steps 2 to 4, again and again when ``patient``."""
        return retry(
            lambda: self._seek(attester),
            # Whoever is throttled was not looked at.
            failures=(TransportError, AdmissionDenied if patient else Throttled),
            seconds=_PATIENCE_SECONDS,
            backoff=Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE),
            wait=self._stop.wait,
        )

    def _seek(self, attester: Attester) -> _Admitted:
        bootstrap = self._bootstrap
        gate = GateClient.connect(bootstrap.gate_address, ca_pin=bootstrap.ca_pin)
        try:
            membership = AdmissionParams(
                job=self._job.name,
                site=bootstrap.site,
                client=bootstrap.client,
                workload=self._read.workload,
                keys=ClientKeys.fresh(),
                policy=self._read.policy,
                trust=bootstrap.trust,
            )
            admitted = seek_admission(
                gate, attester, membership, self._sponsor.vouch, now=self._now
            )
            standing = _Admitted(gate=gate, membership=membership, admitted=admitted)
            self._commit(standing)
        except BaseException:
            gate.close()
            raise
        return standing

    def _commit(self, standing: _Admitted) -> None:
        """Step 4; the same records give the same root each time."""
        mount = Path(self._bootstrap.data)
        if self._seed is None:
            self._seed = self._granted(standing)
        tally = Tally()
        commitment = commit(records(mount, tally), self._seed)
        with control_of(standing.gate, standing.admitted, standing.membership.keys) as control:
            control.commit_data(
                self._job.name,
                root=commitment.root,
                records=commitment.count,
                examples=tally.examples,
            )

    def _granted(self, standing: _Admitted) -> bytes:
        """Ask the site for the seed, as the client that was admitted just now."""
        membership = standing.membership
        who = Client(job=membership.job, site=membership.site, client=membership.client)
        request = request_seed(
            who,
            chain=standing.admitted.chain,
            key=membership.keys.tls,
            hpke_key=membership.keys.hpke_key,
        )
        return open_grant(
            self._sponsor.grant_seed(request),
            who,
            ca_pem=standing.gate.pinned.ca_pem,
            hpke=membership.keys.hpke,
            now=self._now(),
        )

    def _warm(self, standing: _Admitted) -> WarmClient:
        """Step 5, first half."""
        bootstrap, job = self._bootstrap, self._job
        plan = ClientPlan(
            job=job.name,
            site=bootstrap.site,
            seed=job.seed,
            bundle=bootstrap.bundle,
            node_config={
                "data": bootstrap.data,
                "site": bootstrap.site,
                "partition-id": job.sites.index(bootstrap.site),
                "num-partitions": len(job.sites),
            },
            run_config=job.config,
            privacy=job.privacy,
            weighted_by=_weight(job),
            data=Path(bootstrap.data).absolute() if bootstrap.data else None,
            limits=_limits(job, full=bootstrap.sandbox == "full"),
        )
        warm = WarmClient(
            plan,
            address=standing.admitted.fleet_address,
            identity=_identity(standing),
            directory=self._scratch,
            charge=self._sponsor.charge,
        )
        self._opened = warm
        warm.load()
        return warm

    # --- while it works ---------------------------------------------------------------

    def _keep_admitted(
        self, attester: Attester, standing: _Admitted, warm: WarmClient, over: threading.Event
    ) -> None:
        """Step 5: attest again when it is time, until the work is over."""
        while True:
            due = (standing.admitted.renew_after - self._now()).total_seconds()
            if over.wait(max(due, 0.0)):
                return
            failure: Exception
            try:
                self._renew(attester, standing, warm)
                continue
            except Throttled as throttled:
                failure = throttled
            except AdmissionDenied as denied:
                # The work is refused from now on; `run` seeks a new admission.
                _LOG.warning("attesting again was refused: %s", denied)
                return
            except (FedlearnError, AttestationError) as error:
                failure = error
            _LOG.warning("attesting again failed, trying once more: %s", failure)
            if over.wait(_LONGEST_PAUSE):
                return

    def _renew(self, attester: Attester, standing: _Admitted, warm: WarmClient) -> None:
        keys = standing.membership.keys
        with control_of(standing.gate, standing.admitted, keys) as control:
            standing.admitted = renew_admission(
                standing.gate, control, attester, standing.membership
            )
        self._commit(standing)
        warm.renew(_identity(standing))

    def _stop_with(self, warm: WarmClient) -> None:
        self._stop.wait()
        warm.stop()


def _identity(standing: _Admitted) -> Identity:
    return Identity(
        chain=tuple(x509.load_pem_x509_certificates(standing.admitted.chain)),
        key=standing.membership.keys.tls,
        authorities=tuple(x509.load_pem_x509_certificates(standing.gate.pinned.ca_pem)),
    )


def _limits(job: JobSpec, *, full: bool) -> AppLimits:
    """Return what the app may use: what the job asked for, and an answer by its deadline."""
    asked = job.resources
    limits = AppLimits(
        seconds=job.deadline_s,
        cpu=asked.cpu,
        memory_bytes=asked.memory_mib * _MIB,
        gpu=asked.gpu > 0,
        required=FULL if full else frozenset(),
    )
    if asked.disk_mib:
        limits = dataclasses.replace(limits, disk_bytes=asked.disk_mib * _MIB)
    return limits


def _weight(job: JobSpec) -> str:
    chosen: Any = job.strategy.options.get("weighted_by_key", _WEIGHT)
    return str(chosen)
