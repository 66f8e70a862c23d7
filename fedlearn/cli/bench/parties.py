"""The certificate and the simulated machines of the comparison's plain stages."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from attestation.evidence import Tee
from fedlearn.cli.bench.insecure_evidence import COORDINATOR
from fedlearn.cli.bench.job import Job
from fedlearn.config.attester import device
from fedlearn.local.children import Children
from fedlearn.local.federation import Federation
from fedlearn.local.machines import settings_of
from fedlearn.local.policy import policy_text

__all__ = ["machines", "tls_file"]


def tls_file(path: Path) -> Path:
    """Write a P-256 key and its own certificate, which both ends show and trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlearn bench")])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@contextlib.contextmanager
def machines(
    job: Job, folder: Path, tee: Tee
) -> Iterator[Mapping[str, tuple[dict[str, str], dict[str, str]]]]:
    """Make machines; yield for each site the coordinator's end and the site's, as JSON.

    :raises AttesterError: when a software TPM does not start.
    """
    digest = sha256(job.bundle).digest()
    with Children(folder / "logs") as children, contextlib.ExitStack() as stack:
        federation = Federation(folder, children, tee=tee)
        federation.make_machines(job.sites)
        policy = policy_text(federation, name=job.name, bundle=digest, app=job.app, sites=job.sites)
        opened = {
            name: stack.enter_context(device(settings_of(tee), state=machine.state))
            for name, machine in federation.machines.items()
        }

        def end(node: str, other: str) -> dict[str, str]:
            return {
                "kind": opened[node].kind,
                "tcti": opened[node].tcti,
                "state": str(federation.machines[node].state),
                "node": node,
                "other": other,
                "app": digest.hex(),
                "anchor": federation.machines[other].anchor.hex(),
                "hardware": federation.machines[other].hardware_id.hex(),
                "policy": policy,
            }

        yield {site: (end(COORDINATOR, site), end(site, COORDINATOR)) for site in job.sites}
