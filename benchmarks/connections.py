"""Measures the memory of the Fleet listener for each connected client that is idle.

A process with a Fleet listener and the exchange of one job admits the clients. Each client has two
connections over mutual TLS, as a client in a TEE has: one on which it waits for work, and one on
which it sent a heartbeat. The memory is the resident set of the listener's process, before they
connect and when all of them wait; a process that has served one client before is the base, so that
what is loaded once is not counted.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import socket
import ssl
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _processes import resident_mib  # noqa: E402
from _report import at_most, measured, options, show  # noqa: E402
from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402

from edge.client.flower.fleet import Fleet, Identity  # noqa: E402
from fedlearn.identity.spiffe import COORDINATOR_DNS  # noqa: E402
from fedlearn.identity.tls import client_context  # noqa: E402

TARGET_KIB: Final = 100.0
JOB: Final = "idle"


class _Host:
    def __init__(self, link: Any) -> None:
        self.link = link


def _serve(parent: Connection, clients: int) -> None:
    """Run the listener; hand out an identity for each client; end with the parent."""
    from server.flower.exchange.job_exchange import JobExchange
    from server.rpc.connections import Caps
    from tests.harness.flower_federation import FlowerFederation
    from tests.harness.job_plans import job_plan

    sites = [f"site-{number}" for number in range(clients)]
    link = JobExchange(job_plan(job=JOB, sites=sites))
    with tempfile.TemporaryDirectory() as folder:
        caps = Caps(unknown_per_peer=4 * clients, unknown=4 * clients)
        federation = FlowerFederation(Path(folder), caps=caps)
        federation.hosts = {JOB: _Host(link)}
        identities = []
        for site in sites:
            node = link.create_node(site, b"")
            identities.append(federation.admit(JOB, site, node_id=node))
        gc.collect()
        parent.send((federation.address, identities))
        with contextlib.suppress(EOFError):
            parent.recv()
        federation.hosts = {}
        federation.close()


def _connected(address: tuple[str, int], identity: dict[str, str]) -> list[ssl.SSLSocket]:
    """Connect one client: a heartbeat on one connection, a request for work on the other."""
    key = serialization.load_pem_private_key(identity["key"].encode(), None)
    found = Identity(
        chain=tuple(x509.load_pem_x509_certificates(identity["chain"].encode())),
        key=key,  # type: ignore[arg-type]
        authorities=(x509.load_pem_x509_certificate(identity["root"].encode()),),
    )
    header = Fleet("127.0.0.1:1", found, max_message_bytes=1)._session.key
    context = client_context(found.chain, found.key, found.authorities)
    body = json.dumps({"interval": 1000.0}).encode()
    sockets = []
    for action, content in (("activate-node", body), ("fetch", b"")):
        raw = socket.create_connection(address)
        tls = context.wrap_socket(raw, server_hostname=COORDINATOR_DNS)
        lines = [f"POST /v1/fleet/{action} HTTP/1.1", "host: x", f"flwr-public-key: {header}"]
        head = "\r\n".join([*lines, f"content-length: {len(content)}", "", ""]).encode()
        tls.sendall(head + content)
        if content and b" 200 " not in tls.recv(4096):
            raise SystemExit("a client was not let in")
        sockets.append(tls)
    return sockets


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, default=300)
    arguments = parser.parse_args()
    clients = 10 if arguments.quick else arguments.clients
    one, other = socket.socketpair()
    ours, theirs = Connection(one.detach()), Connection(other.detach())
    server = multiprocessing.get_context("fork").Process(
        target=_serve, args=(theirs, clients + 1), daemon=True
    )
    server.start()
    address, identities = ours.recv()
    pid = server.pid or 0
    held = _connected(address, identities[0])
    before = resident_mib(pid)
    for identity in identities[1:]:
        held += _connected(address, identity)
    after = resident_mib(pid)
    ours.close()
    server.terminate()
    row = measured(
        "memory of a connected client in the fleet listener",
        unit="KiB",
        ours=(after - before) * 1024 / clients,
        target=[at_most(TARGET_KIB)],
        how=f"growth of VmRSS by {clients} idle clients of two connections each, mutual TLS",
    )
    show([row], as_json=arguments.json)


if __name__ == "__main__":
    main()
