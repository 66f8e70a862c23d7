"""A coordinator without listeners, started again and again on one state directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from attestation.config import dumps
from attestation.trust import TrustAnchors
from server.admission.gate import AdmissionGate
from server.admission.registry import AdmissionRegistry
from server.config import ServerConfig
from server.coordinator import Coordinator
from server.identity.site_records import site_entries
from server.identity.site_registry import SiteRegistry
from server.state_directory import StateDirectory, initialize
from tests.harness.deployment import new_csr, new_key

PYPROJECT = """
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "tiny.server_app:app"
clientapp = "tiny.client_app:app"
"""


def tiny_bundle(folder: Path) -> bytes:
    """The smallest application, as a bundle."""
    from server.flower.application.bundle import build

    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "tiny" / "__init__.py").write_text("")
    for side, kind in (("server", "ServerApp"), ("client", "ClientApp")):
        code = f"from flwr.{side}app import {kind}\napp = {kind}()\n"
        (folder / "tiny" / f"{side}_app.py").write_text(code)
    return build(folder)


class RestartingCoordinator:
    """Starts the coordinator of one state folder, after it has stopped the one before."""

    def __init__(self, folder: Path, settings: ServerConfig) -> None:
        self._folder = folder
        self._settings = settings
        self._closing: list[Callable[[], object]] = []

    def stop(self) -> None:
        """End the coordinator that runs, if one does."""
        while self._closing:
            self._closing.pop()()

    def __call__(self) -> Coordinator:
        self.stop()
        closing, settings = self._closing, self._settings
        directory = StateDirectory.open(settings)
        closing.append(directory.close)
        book = directory.job_store()
        closing.append(book.close)
        app_logs = directory.app_log_store()
        closing.append(app_logs.close)
        sites = SiteRegistry(
            entries=site_entries(directory.ledger),
            address="127.0.0.1:1",
            ca_pin=directory.ca.key_digest,
            clock=lambda: datetime.now(UTC),
            record=directory.ledger.append,
        )
        if not sites.list():
            token = sites.invitations.create_token("site-a", needs_approval=False)
            sites.invitations.enroll(token.encode(), new_csr(new_key()))
        registry = AdmissionRegistry()
        runtime = self._folder / "run"
        runtime.mkdir(exist_ok=True)
        coordinator = Coordinator(
            directory,
            job_store=book,
            app_logs=app_logs,
            sites=sites,
            registry=registry,
            trust=TrustAnchors,
            gate_of=lambda jobs: AdmissionGate(
                ca=directory.ca,
                registry=registry,
                jobs=jobs.admittable,
                sites=sites,
                nodes=jobs,
                record=jobs.record,
                clock=lambda: datetime.now(UTC),
            ),
            runtime=runtime,
        )
        closing.append(coordinator.supervisor.stop)
        coordinator.supervisor.reopen_all()
        return coordinator


@contextmanager
def restarting_coordinator(
    folder: Path, *, policy_keys: Sequence[bytes] = ()
) -> Iterator[RestartingCoordinator]:
    """Initialize a coordinator with one site; give what starts it."""
    table = {
        "state": "state",
        "trust_domain": "test.example",
        "keys": {"protect": ["insecure-plain-key-file"]},
        "trust": {"policy_keys": [key.hex() for key in policy_keys]},
    }
    (folder / "server.toml").write_text(dumps(table))
    settings = ServerConfig.load(folder / "server.toml")
    initialize(settings, now=datetime.now(UTC), control_address="127.0.0.1:1", operator_csr=None)
    start = RestartingCoordinator(folder, settings)
    try:
        yield start
    finally:
        start.stop()
