"""A running coordinator: everything wired together, started and stopped in order.

The page is docs/explanation/threat-model.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.policy import ear
from attestation.policy.result import AttestationResult
from fedlearn.config.attester import device, open_attester
from fedlearn.errors import ConfigError
from fedlearn.identity.software import software_digest
from fedlearn.identity.tls import server_context
from fedlearn.job.state import JobStatus
from fedlearn.sandbox import protect_this_process
from fedlearn.terminal.logs import log_event
from server.admission.challenges import Limits, Rates
from server.admission.coordinator_evidence import CoordinatorProof
from server.admission.exclusions import ExclusionList
from server.admission.gate import AdmissionGate
from server.admission.registry import AdmissionRegistry
from server.admission.types import Periods
from server.clock import SteadyClock
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.event_log import log_entry
from server.health import Health
from server.identity.operators import OperatorRegistry
from server.identity.peer_certificates import spki
from server.identity.site import SiteStatus
from server.identity.site_records import site_entries
from server.identity.site_registry import SiteRegistry
from server.identity.tpm_enrollment import TpmEnrollment
from server.jobs.job_admission import JobAdmission
from server.jobs.runtime_folder import in_memory, make_runtime_folder
from server.maintenance.listener import MaintenanceListener
from server.measurement import config_digest
from server.metrics import (
    FAULTS,
    JOBS,
    LEDGER_ENTRIES,
    SITES,
    AdmissionCounts,
    Gauge,
    serve_metrics,
)
from server.rpc import Listeners, RpcConfig, Welcome
from server.rpc.connections import Caps
from server.rpc.fleet import FleetServer
from server.rpc.open_files import caps_of, check_open_files
from server.state_directory import StateDirectory

__all__ = ["Service", "serve"]

_LOG = logging.getLogger(__name__)
_SWEEP_SECONDS: Final = 0.5
_HOW: Final = "they run, on a disk: name a folder in memory by RUNTIME_DIRECTORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running coordinator. Addresses are those that are given to others."""

    directory: StateDirectory
    coordinator: Coordinator
    gate_address: str
    control_address: str
    fleet_address: str


@contextmanager
def serve(config: ServerConfig, document: Mapping[str, Any]) -> Iterator[Service]:
    """Run a coordinator for as long as the context is entered.

    :param document: what ``config`` was read from; it is measured.
    :raises FedlearnError: when the state does not open or an address cannot be bound.
    :raises AttesterError: when the coordinator cannot prove itself on this machine.
    """
    # Other processes of this user, or a core dump, could read keys and weights in the clear.
    protect_this_process()
    check_open_files(config.limits.sites)
    os.umask(0o077)
    clock = SteadyClock()
    with ExitStack() as stack:
        directory = stack.enter_context(StateDirectory.open(config))
        directory.ledger.subscribe(log_entry)
        directory.keys.sweep()
        settings = stack.enter_context(device(config.attester, state=config.state))
        anchors = config.trust.anchors()
        measured = {
            "software": software_digest(),
            "config": config_digest(
                document,
                roots=anchors.tpm_ek_roots,
                protectors=directory.store.catalogue.protectors,
            ),
        }
        # A TPM that keeps its registers takes one value for each claim of a scope.
        scope = hashlib.sha256(b"".join(measured.values())).hexdigest()[:16]
        attester = open_attester(settings, state=config.state, scope=f"coordinator-{scope}")
        for claim, digest in measured.items():
            attester.extend(claim, digest)
        listen = {
            name: _resolved(getattr(config.listen, name)) for name in ("gate", "control", "fleet")
        }
        advertised = {name: config.advertised(name, bound) for name, bound in listen.items()}
        dns_names, ips = _names([*listen.values(), *advertised.values()])
        key, chain = directory.server_identity(dns_names=dns_names, ips=ips, now=clock())
        registry = AdmissionRegistry()
        counts = AdmissionCounts()
        registry.subscribe(counts)
        job_store = directory.job_store()
        stack.callback(job_store.close)
        app_logs = directory.app_log_store()
        stack.callback(app_logs.close)
        sites = SiteRegistry(
            entries=site_entries(directory.ledger),
            address=advertised["gate"],
            ca_pin=directory.ca.key_digest,
            clock=clock,
            record=directory.ledger.append,
            limit=config.limits.sites,
            token_lifetime=timedelta(seconds=config.certificates.token_s),
        )
        operators = OperatorRegistry(
            ca=directory.ca,
            entries=(entry.body for entry in directory.ledger.entries(kind="operator")),
            record=directory.ledger.append,
            clock=clock,
        )
        runtime = make_runtime_folder(config.state)
        if not in_memory(runtime):
            _LOG.warning("the files that apps write are in the clear in %s while %s", runtime, _HOW)
        health = Health()
        coordinator = Coordinator(
            directory,
            job_store=job_store,
            app_logs=app_logs,
            sites=sites,
            registry=registry,
            trust=lambda: anchors,
            gate_of=partial(_gate, directory, registry, sites, clock),
            runtime=runtime,
            clock=clock,
            health=health,
        )
        gate = coordinator.gate
        clock.subscribe(gate.shift)
        fleet = FleetServer(
            tls=server_context(
                x509.load_pem_x509_certificates(chain),
                key,
                [x509.load_pem_x509_certificate(directory.ca.certificate_pem)],
            ),
            registry=registry,
            link_of=coordinator.jobs.link_of,
            trust_domain=config.trust_domain,
            host=listen["fleet"].rpartition(":")[0].strip("[]"),
            port=int(listen["fleet"].rpartition(":")[2]),
            max_update_bytes=config.limits.update_mib * 1024 * 1024,
            max_deliveries_bytes=config.limits.deliveries_mib * 1024 * 1024,
            caps=_caps(config, per_identity=16),
            clock=clock,
        )
        fleet.start()
        stack.callback(fleet.stop)
        tpms = TpmEnrollment(sites=sites, trust=lambda: anchors, clock=clock)
        clock.subscribe(tpms.shift)
        hpke = X25519PrivateKey.generate().public_key().public_bytes_raw()
        listeners = Listeners(
            config=RpcConfig(
                gate=listen["gate"],
                control=listen["control"],
                caps=_caps(config, per_identity=8),
                # Where one address may hold every connection, it may hold every call.
                gate_calls_per_peer=min(256, max(32, config.limits.connections_per_peer // 4)),
            ),
            server_chain=chain,
            server_key=_pem(key),
            ca=directory.ca,
            gate=gate,
            proof=CoordinatorProof(
                attester=attester,
                verifier_id=directory.ca.key_digest,
                tls_key=spki(key.public_key()),
                hpke_key=hpke,
                jobs=coordinator.admission.admittable,
                clock=clock,
                limits=_limits(config),
            ),
            sites=sites,
            operators=operators,
            coordinator=coordinator,
            welcome=Welcome(
                fleet_address=advertised["fleet"],
                control_address=advertised["control"],
                order_key=spki(directory.order_key.public_key()),
                site_lifetime=timedelta(days=config.certificates.site_days),
            ),
            clock=clock,
            store=directory.store,
            ledger=directory.ledger,
            tpms=tpms,
            owner_rates=Rates(limits=_limits(config)),
        )
        # Before a site can connect: what it runs of a job that is not open is stopped there.
        stack.callback(coordinator.supervisor.stop)
        coordinator.deletion.finish()
        coordinator.supervisor.reopen_all()
        listeners.start()
        stack.callback(listeners.stop)
        maintenance = MaintenanceListener(config.state, directory.keys.root, directory.store)
        try:
            maintenance.start()
        except ConfigError as error:
            # A file system without sockets: export and rotation need a stopped coordinator.
            _LOG.warning("%s", error)
        else:
            stack.callback(maintenance.stop)
            health.check("maintenance socket", maintenance.fault)
        health.check("fleet", fleet.fault)
        health.check("gate and control", listeners.fault)
        stack.enter_context(
            _sweeping(health, clock.tick, gate.sweep, sites.settle, coordinator.supervisor.tend)
        )
        # At the end first of all, while the sites are connected; the other time, it has no jobs.
        stack.callback(coordinator.supervisor.stop)
        if config.metrics.listen:
            read = partial(_gauges, directory, coordinator, sites, counts, health)
            stack.enter_context(serve_metrics(config.metrics.listen, read, health.faults))
        addresses = ", ".join(f"{name} at {address}" for name, address in advertised.items())
        log_event(
            _LOG,
            "coordinator.listening",
            f"the coordinator listens: {addresses}",
            addresses=advertised,
        )
        yield Service(
            directory=directory,
            coordinator=coordinator,
            gate_address=advertised["gate"],
            control_address=advertised["control"],
            fleet_address=advertised["fleet"],
        )


def _gauges(
    directory: StateDirectory,
    coordinator: Coordinator,
    sites: SiteRegistry,
    counts: AdmissionCounts,
    health: Health,
) -> tuple[Gauge, ...]:
    jobs = Counter(job.status for job in coordinator.list_jobs())
    known = Counter(site.status.value for site in sites.list())
    head = directory.ledger.head()
    return (
        replace(JOBS, values={status.value: jobs[status] for status in JobStatus}),
        replace(SITES, values={status.value: known[status.value] for status in SiteStatus}),
        replace(LEDGER_ENTRIES, values={"": head.sequence if head is not None else 0}),
        replace(FAULTS, values={"": len(health.faults())}),
        *counts.gauges(),
    )


def _gate(
    directory: StateDirectory,
    registry: AdmissionRegistry,
    sites: SiteRegistry,
    clock: Callable[[], datetime],
    jobs: JobAdmission,
) -> AdmissionGate:
    certificates = directory.config.certificates

    def sign(result: AttestationResult) -> bytes:
        return ear.issue(result, key=directory.result_key, issued=clock()).encode()

    return AdmissionGate(
        ca=directory.ca,
        registry=registry,
        jobs=jobs.admittable,
        sites=sites,
        nodes=jobs,
        record=jobs.record,
        clock=clock,
        periods=Periods(
            lifetime=timedelta(seconds=certificates.client_s),
            renew_after=timedelta(seconds=certificates.renew_after_s),
            renew_by=timedelta(seconds=certificates.renew_by_s),
        ),
        limits=_limits(directory.config),
        sign_result=sign,
        exclusions=ExclusionList(
            entry.body for entry in directory.ledger.entries(kind="exclusion")
        ),
        readmitted=jobs.readmitted,
    )


def _caps(config: ServerConfig, *, per_identity: int) -> Caps:
    limits = config.limits
    return caps_of(
        connections=limits.connections,
        per_peer=limits.connections_per_peer,
        per_identity=per_identity,
    )


def _limits(config: ServerConfig) -> Limits:
    limits = config.limits
    rate, per_peer = limits.requests_per_second, limits.requests_per_second_per_peer
    return Limits(
        outstanding=limits.challenges,
        outstanding_per_peer=limits.challenges_per_peer,
        rate=rate,
        burst=max(1, int(4 * rate)),
        rate_per_peer=per_peer,
        burst_per_peer=max(8, int(8 * per_peer)),
    )


@contextmanager
def _sweeping(health: Health, *duties: Callable[[], object]) -> Iterator[None]:
    """Call each duty about twice a second: end what has expired, write what was deferred."""
    over = threading.Event()

    def sweep() -> None:
        while not over.wait(_SWEEP_SECONDS):
            for duty in duties:
                try:
                    duty()
                except Exception as error:  # noqa: BLE001 (reported; the next turn tries again)
                    health.fault("sweep", f"{type(error).__name__}: {error}")
                    break
            else:
                health.clear("sweep")

    thread = health.thread("sweep", sweep, over=over.is_set)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


def _resolved(address: str) -> str:
    """Return ``address`` with a port that is free now in place of port 0."""
    host, _, port = address.rpartition(":")
    if port != "0":
        return address
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host.strip("[]"), 0))
        return f"{host}:{probe.getsockname()[1]}"


def _names(addresses: list[str]) -> tuple[list[str], list[str]]:
    """Return the DNS names and the IP addresses in ``addresses``, for the certificate."""
    names: set[str] = set()
    ips: set[str] = set()
    for address in addresses:
        host = address.rpartition(":")[0].strip("[]")
        try:
            ips.add(str(ipaddress.ip_address(host)))
        except ValueError:
            names.add(host)
    return sorted(names), sorted(ips)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
