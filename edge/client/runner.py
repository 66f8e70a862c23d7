"""A client from its start to the end of its job. This is what runs inside the TEE.

1. Measure ``software`` (the code of fedlearn), ``app`` (the bundle) and ``job`` (its specification)
   into a runtime register, before any code of the app has run.
2. Connect to the pinned coordinator and verify *its* evidence by the job's policy.
3. Make keys in memory, attest, and get a certificate for them.
4. Get the seed of the site's commitments, sealed to these keys, and commit to the data: a
   salted Merkle root over its records.
5. Load the app, in a process of its own that has no key and no connection, and work, round by
   round. In the background, attest again in time, and check that the data still has the root that
   was committed to.

When the coordinator does not know the client any more, begin again at 2; the app stays loaded.

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
from typing import Final

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
from edge.client.app_log import app_log_for, plain_is_possible
from edge.client.dataset import Tally, records
from edge.client.flower.app_process import AppLimits
from edge.client.flower.fleet import Identity
from edge.client.flower.state_store import StateStore
from edge.client.flower.warm_client import ClientPlan, WarmClient
from edge.protocol.bootstrap import Bootstrap
from edge.protocol.rpc import AdmittedClient, GateClient
from edge.protocol.seed_release import Client, open_grant, request_seed
from edge.protocol.workload import WorkloadApi
from fedlearn.backoff import Backoff, retry
from fedlearn.config.attester import open_attester
from fedlearn.errors import AdmissionDenied, FedlearnError, Throttled, TransportError
from fedlearn.identity.software import software_digest
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec
from fedlearn.sandbox import FULL, protect_this_process
from fedlearn.sealing.client_state import open_secret, state_key
from fedlearn.update.commitment import commit

__all__ = ["ReportPhase", "run"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_PATIENCE_SECONDS: Final = 900.0
_MIB: Final = 1024 * 1024

ReportPhase = Callable[[Phase, str], None]
"""``report(phase, reason)`` reports to the agent."""


@dataclass(slots=True)
class _Admitted:
    """The admission that is in force, with its channels."""

    gate: GateClient
    params: AdmissionParams
    admitted: AdmittedClient

    def close(self) -> None:
        self.gate.close()


def run(
    bootstrap: Bootstrap,
    workload_api: WorkloadApi,
    *,
    report: ReportPhase,
    stop: threading.Event,
    scratch: Path,
    in_pod: bool = True,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Phase:
    """Run a client until its job ends or ``stop`` is set; return how it ended.

    :param scratch: a private folder for the unpacked app; it must not exist.
    :param in_pod: whether the client's log is read by others than the site's machine.
    """
    # This process has keys, data and weights in its memory, unencrypted.
    protect_this_process()
    os.umask(0o077)
    client = _Client(
        bootstrap,
        workload_api,
        report=report,
        stop=stop,
        scratch=scratch,
        plain=plain_is_possible(bootstrap.attester, in_pod=in_pod),
        keeps_state=not in_pod,
        now=now,
    )
    try:
        reason = client.run()
    except AdmissionDenied as denied:
        report(Phase.REFUSED, str(denied))
        return Phase.REFUSED
    except (FedlearnError, AttestationError) as error:
        report(Phase.FAILED, f"{error}{f' ({error.hint})' if error.hint else ''}")
        return Phase.FAILED
    phase = Phase.STOPPED if stop.is_set() else Phase.SUCCEEDED
    report(phase, reason)
    return phase


class _Client:
    def __init__(
        self,
        bootstrap: Bootstrap,
        workload_api: WorkloadApi,
        *,
        report: ReportPhase,
        stop: threading.Event,
        scratch: Path,
        plain: bool,
        keeps_state: bool,
        now: Callable[[], datetime],
    ) -> None:
        self._bootstrap = bootstrap
        self._workload_api = workload_api
        self._report = report
        self._stop = stop
        self._scratch = scratch
        self._plain = plain
        self._keeps_state = keeps_state
        self._now = now
        self._read = bootstrap.read()
        self._job: JobSpec = self._read.spec
        self._seed: bytes | None = None
        self._examples = 0
        self._opened: WarmClient | None = None
        self._admission: _Admitted | None = None

    def run(self) -> str:
        """Do steps 1 to 5; return why the work ended. No process of the app is left then."""
        try:
            return self._run()
        finally:
            if self._opened is not None:
                self._opened.close()

    def _run(self) -> str:
        attester = self._measured()
        admission = self._admission = self._admitted(attester, patient=False)
        warm = self._warm(admission)
        self._report(Phase.RUNNING, "admitted")
        watcher = threading.Thread(target=self._stop_with, args=(warm,), name="stop", daemon=True)
        watcher.start()
        while True:
            over = threading.Event()
            renewal = threading.Thread(
                target=self._keep_admitted,
                args=(attester, admission, warm, over),
                name="renewal",
                daemon=True,
            )
            renewal.start()
            try:
                return warm.run()
            except AdmissionDenied as denied:
                if self._stop.is_set():
                    return "stopped"
                _LOG.warning(
                    "the client is no longer admitted and requests admission again: %s", denied
                )
            finally:
                over.set()
                renewal.join(30)
                admission.close()
            admission = self._admission = self._admitted(attester, patient=True)
            warm.renew(_identity(admission))

    # --- before the first round -------------------------------------------------------

    def _measured(self) -> Attester:
        """Do step 1."""
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
        """Do steps 2 to 4; when ``patient``, repeat them after a refusal as well."""
        return retry(
            lambda: self._seek(attester),
            # A throttled request was not examined.
            failures=(TransportError, AdmissionDenied if patient else Throttled),
            seconds=_PATIENCE_SECONDS,
            backoff=Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE),
            wait=self._stop.wait,
        )

    def _seek(self, attester: Attester) -> _Admitted:
        bootstrap = self._bootstrap
        gate = GateClient.connect(bootstrap.gate_address, ca_pin=bootstrap.ca_pin)
        try:
            params = AdmissionParams(
                job=self._job.name,
                site=bootstrap.site,
                client=bootstrap.client,
                workload=self._read.workload,
                keys=ClientKeys.fresh(),
                policy=self._read.policy,
                trust=bootstrap.trust,
            )
            admitted = seek_admission(
                gate, attester, params, self._workload_api.vouch, now=self._now
            )
            admission = _Admitted(gate=gate, params=params, admitted=admitted)
            self._commit(admission)
        except BaseException:
            gate.close()
            raise
        return admission

    def _commit(self, admission: _Admitted) -> None:
        """Do step 4; the same records give the same root each time."""
        mount = Path(self._bootstrap.data)
        if self._seed is None:
            self._seed = self._granted(admission)
        tally = Tally()
        commitment = commit(records(mount, tally), self._seed)
        self._examples = tally.examples
        with control_of(admission.gate, admission.admitted, admission.params.keys) as control:
            control.commit_data(
                self._job.name,
                root=commitment.root,
                records=commitment.count,
                examples=tally.examples,
            )

    def _granted(self, admission: _Admitted) -> bytes:
        """Ask the site for the seed, with the certificate of ``admission``."""
        params = admission.params
        who = Client(job=params.job, site=params.site, client=params.client)
        request = request_seed(
            who,
            chain=admission.admitted.chain,
            key=params.keys.tls,
            hpke_key=params.keys.hpke_key,
        )
        return open_grant(
            self._workload_api.grant_seed(request),
            who,
            ca_pem=admission.gate.pinned.ca_pem,
            hpke=params.keys.hpke,
            now=self._now(),
        )

    def _warm(self, admission: _Admitted) -> WarmClient:
        """Load the app (step 5)."""
        bootstrap, job = self._bootstrap, self._job
        plan = ClientPlan(
            spec=job,
            site=bootstrap.site,
            bundle=bootstrap.bundle,
            node_config={
                "data": bootstrap.data,
                "site": bootstrap.site,
                "partition-id": job.sites.index(bootstrap.site),
                "num-partitions": len(job.sites),
            },
            data=Path(bootstrap.data).absolute() if bootstrap.data else None,
            limits=_limits(job, full=bootstrap.sandbox == "full"),
            filters=bootstrap.filters,
            most_examples=self._examples,
        )
        warm = WarmClient(
            plan,
            address=admission.admitted.fleet_address,
            identity=_identity(admission),
            directory=self._scratch,
            charge=self._workload_api.charge,
            log=app_log_for(
                job,
                mode=bootstrap.app_logs,
                plain=self._plain,
                site=bootstrap.site,
                client=bootstrap.client,
                deliver=self._deliver_log,
            ),
            store=self._state_store(plan.limits.memory_bytes) if self._keeps_state else None,
        )
        self._opened = warm
        warm.load()
        return warm

    def _state_store(self, most: int) -> StateStore:
        """Return where the state of the app is kept for the next client of this site and job.

        What a pod writes is gone with it, so that only a process of the site's machine has one.
        """
        job, site = self._job.name, self._bootstrap.site
        folder = self._bootstrap.state / "app-state" / f"{job}-{self._read.workload.hex()[:16]}"
        return StateStore(folder, job=job, site=site, key=self._state_key, most=most)

    def _state_key(self) -> bytes:
        """Ask for the key of the states, as the client that is admitted now."""
        admission, seed = self._admission, self._seed
        if admission is None or seed is None:
            raise AdmissionDenied("the client is not admitted")
        params = admission.params
        with control_of(admission.gate, admission.admitted, params.keys) as control:
            wrapped = control.release_state_secret()
        names = {"job": params.job, "site": params.site}
        return state_key(open_secret(wrapped, params.keys.hpke, **names), seed, **names)

    def _deliver_log(self, log: SealedAppLog) -> None:
        """Deliver a sealed log as the client that is admitted now."""
        admission = self._admission
        if admission is None:
            raise AdmissionDenied("the client is not admitted")
        keys = admission.params.keys
        with control_of(admission.gate, admission.admitted, keys) as control:
            control.deliver_app_log(log)

    # --- while it works ---------------------------------------------------------------

    def _keep_admitted(
        self, attester: Attester, admission: _Admitted, warm: WarmClient, over: threading.Event
    ) -> None:
        """Attest again when it is due, until the work is over (step 5)."""
        while True:
            due = (admission.admitted.renew_after - self._now()).total_seconds()
            if over.wait(max(due, 0.0)):
                return
            failure: Exception
            try:
                self._renew(attester, admission, warm)
                continue
            except Throttled as throttled:
                failure = throttled
            except AdmissionDenied as denied:
                # The coordinator refuses further work; `run` requests a new admission.
                _LOG.warning("attesting again was refused: %s", denied)
                return
            except (FedlearnError, AttestationError) as error:
                failure = error
            _LOG.warning("attesting again failed, trying once more: %s", failure)
            if over.wait(_LONGEST_PAUSE):
                return

    def _renew(self, attester: Attester, admission: _Admitted, warm: WarmClient) -> None:
        keys = admission.params.keys
        with control_of(admission.gate, admission.admitted, keys) as control:
            admission.admitted = renew_admission(
                admission.gate, control, attester, admission.params
            )
        self._commit(admission)
        warm.renew(_identity(admission))

    def _stop_with(self, warm: WarmClient) -> None:
        self._stop.wait()
        warm.stop()


def _identity(admission: _Admitted) -> Identity:
    return Identity(
        chain=tuple(x509.load_pem_x509_certificates(admission.admitted.chain)),
        key=admission.params.keys.tls,
        authorities=tuple(x509.load_pem_x509_certificates(admission.gate.pinned.ca_pem)),
    )


def _limits(job: JobSpec, *, full: bool) -> AppLimits:
    """Return the limits of the app: the job's resources, and its deadline for each answer."""
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
