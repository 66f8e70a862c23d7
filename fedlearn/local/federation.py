"""A whole federation on one machine: a coordinator and sites, each in processes of its own.

It uses the public interfaces only: the commands ``fedlearn-server`` and ``fedlearn-edge``, their
configuration files, and the operator's API. Each party has its state in a folder of its own; only a
join token is copied from the coordinator to a site. Paths in the configurations are relative, so
the whole folder can be moved and used again. The demo, ``fedlearn job try``, ``fedlearn local`` and
benchmarks use it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from attestation.config import dumps
from attestation.evidence import Tee
from fedlearn import extras
from fedlearn.errors import ConfigError, FedlearnError, LaunchError, TransportError
from fedlearn.identity.login import OperatorLogin, accept_grant, ca_pin, request_login
from fedlearn.local.children import Child, Children
from fedlearn.local.daemons import Daemon, Daemons
from fedlearn.local.machines import Machine, make_machine

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient

__all__ = ["Federation", "Party", "free_port", "program"]

_START_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05
_T = TypeVar("_T")
_TRUST_DOMAIN: Final = "demo.fedlearn"
COORDINATOR: Final = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A site: its folder, its machine, and its data sets by name.

    ``visible_updates``: whether it accepts jobs whose app receives single updates.
    ``app_logs``: where the output of apps goes (:class:`edge.config.site.Accept`).
    """

    name: str
    folder: Path
    machine: Machine
    data: Mapping[str, Path] = field(default_factory=dict)
    visible_updates: bool = False
    app_logs: str = "off"

    @property
    def config(self) -> Path:
        """The site's ``site.toml``."""
        return self.folder / "site.toml"


class Federation:
    """A coordinator and its sites below ``folder``.

    :param children: starts their processes, which end with it or stay.
    :param tee: the kind of evidence of the simulated machines.
    :param insecure_any_bundle: the sites run any code.
    """

    def __init__(
        self,
        folder: Path,
        children: Children | Daemons,
        *,
        tee: Tee,
        insecure_any_bundle: bool = False,
    ) -> None:
        self.folder = folder
        self.tee = tee
        self.machines: dict[str, Machine] = {}
        self.parties: dict[str, Party] = {}
        self.pinned: tuple[str, ...] = ()
        self._children = children
        self._insecure_any_bundle = insecure_any_bundle
        self._server = folder / COORDINATOR
        self._client: OperatorClient | None = None
        self._process: Child | Daemon | None = None

    @property
    def state(self) -> Path:
        """The coordinator's state directory."""
        return self._server / "state"

    @property
    def server_config(self) -> Path:
        """The coordinator's ``server.toml``."""
        return self._server / "server.toml"

    @property
    def passphrase_file(self) -> Path:
        """The passphrase file of the coordinator's root key, outside of its state directory."""
        return self.folder / "operator" / "passphrase"

    @property
    def login(self) -> Path:
        """The operator's login."""
        return self.folder / "operator" / "login"

    @property
    def operator(self) -> OperatorClient:
        """The operator's client, once :meth:`start` has returned."""
        if self._client is None:
            raise TransportError("the coordinator was not started")
        return self._client

    def make_machines(self, names: Iterable[str], *, pinned: Iterable[str] = ()) -> None:
        """Make a machine for the coordinator and for each site in ``names``.

        The coordinator's configuration pins the attestation keys of the ``pinned`` ones; other
        sites prove theirs when they join.
        """
        self.pinned = tuple(pinned)
        with ThreadPoolExecutor(max_workers=4) as pool:
            self._make([COORDINATOR, *names, *self.pinned], pool)

    def open(self, names: Iterable[str], *, pinned: Iterable[str] = ()) -> None:
        """Do :meth:`make_machines` and :meth:`start`, in parallel if possible.

        A coordinator whose configuration pins no sites' keys starts while the machines of the
        sites are made.
        """
        self.pinned = tuple(pinned)
        first, later = [COORDINATOR, *self.pinned], list(names)
        if self.tee is not Tee.TPM:
            first, later = [*first, *later], []
        with ThreadPoolExecutor(max_workers=4) as pool:
            self._make(first, pool)
            rest = pool.submit(self._make, later, pool)
            self.start()
            rest.result()

    def _make(self, names: Iterable[str], pool: ThreadPoolExecutor) -> None:
        def make(name: str) -> tuple[str, Machine]:
            state = self.state if name == COORDINATOR else self._site_state(name)
            return name, make_machine(self.tee, state)

        self.machines.update(pool.map(make, names))

    def start(self) -> None:
        """Initialize the coordinator and start it; return when it answers its operator.

        :raises LaunchError: with its last output, when it does not start.
        :raises ConfigError: when the packages of a coordinator are not installed.
        """
        self._initialize()
        self.resume()

    def resume(self) -> None:
        """Start the coordinator that was initialized; return when it answers its operator.

        :raises LaunchError: with its last output, when it does not start.
        :raises ConfigError: when the packages of a coordinator are not installed.
        """
        extras.require("server", needed_for="a coordinator on this machine")
        command = (program("fedlearn-server"), "run", "--config", self.server_config)
        self._process = self._children.start(COORDINATOR, command)
        self._client = self._connect(self._process)

    def _initialize(self) -> None:
        extras.require("server", needed_for="a coordinator on this machine")
        secret = self.passphrase_file
        secret.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_urlsafe(32) + "\n")
        settings = self.server_config
        settings.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        settings.write_text(dumps(self.server_table()))
        command = program("fedlearn-server")
        # The operator makes the key; the coordinator receives the request only.
        request = request_login(self.login, "operator")
        self._children.run(
            "fedlearn-server init",
            [command, "init", "--config", settings, "--operator-csr", request],
        )
        accept_grant(
            self.login,
            self.state / "operator.toml",
            now=datetime.now(UTC),
            pin=ca_pin((self.state / "ca.pem").read_bytes()),
        )

    def reopen(self) -> None:
        """Start the coordinator and the agents again, with what an earlier run left in the folder.

        They listen where they did before, and go on with their jobs. Returns when the coordinator
        answers its operator.

        :raises LaunchError: with its last output, when it does not start.
        :raises ConfigError: when the packages of a coordinator are not installed.
        """
        self.resume()
        for site in sorted(self.folder.glob("sites/*/site.toml")):
            command = (program("fedlearn-edge"), "run", "--config", site)
            self._children.start(site.parent.name, command)

    def token(self, site: str) -> str:
        """Return a join token for ``site`` and its machine, for one use within ten minutes."""
        machine = self.machines.get(site)
        ek = machine.hardware_id if machine is not None and machine.tee is Tee.TPM else b""
        sample = machine.anchor if machine is not None and machine.tee is Tee.SAMPLE else b""
        invitation = self.operator.create_token(
            site,
            lifetime=timedelta(minutes=10),
            needs_approval=False,
            ek=ek,
            sample_key=sample,
        )
        return invitation.token

    def join(
        self,
        name: str,
        *,
        data: Mapping[str, Path],
        bundle: bytes,
        visible_updates: bool = False,
        app_logs: str = "off",
    ) -> Party:
        """Enroll a site with a token, let it accept ``bundle`` (SHA-256), and start its agent.

        With ``visible_updates`` it also accepts jobs whose app receives single updates;
        ``app_logs`` states where the output of apps goes (:class:`edge.config.site.Accept`).

        It does the same as ``fedlearn site enroll``, without the second that a process takes.

        :raises FedlearnError: when the enrollment fails.
        """
        from edge.protocol.rpc import enroll

        party = Party(
            name=name,
            folder=self._site_folder(name),
            machine=self.machines[name],
            data=data,
            visible_updates=visible_updates,
            app_logs=app_logs,
        )
        party.config.write_text(dumps(self.site_table(party, bundle)))
        enroll(self.token(name)).save(self._site_state(name))
        self.start_agent(party)
        return party

    def start_agent(self, party: Party) -> None:
        """Start the agent of a site that has enrolled."""
        command = (program("fedlearn-edge"), "run", "--config", party.config)
        self._children.start(party.name, command)
        self.parties[party.name] = party

    def await_connected(self, names: Iterable[str]) -> None:
        """Wait until the agents of all ``names`` are connected.

        :raises LaunchError: naming those that are not connected after half a minute.
        """
        wanted = set(names)

        def missing() -> set[str]:
            self._children.check()
            return wanted - {s.name for s in self.operator.list_sites() if s.connected}

        if late := _poll(missing, until=lambda found: not found):
            raise LaunchError(f"not connected: {', '.join(sorted(late))}")

    def identity_folder(self, name: str) -> Path:
        """Return the folder of a site's key and certificate."""
        return self._site_state(name)

    def anchors(self, names: Iterable[str]) -> list[str]:
        """Return the attestation keys of machines as configurations have them."""
        return [self.machines[name].anchor.hex() for name in names]

    def check(self) -> None:
        """Return while all processes run.

        :raises LaunchError: naming the first that has ended.
        """
        self._children.check()

    def close(self) -> None:
        """Close the operator's connection. The processes end with their children's context."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _site_folder(self, name: str) -> Path:
        return self.folder / "sites" / name

    def client_logs(self, site: str) -> Path:
        """Return the folder of the logs of a site's clients."""
        return self._site_state(site) / "clients" / "logs"

    def _site_state(self, name: str) -> Path:
        return self._site_folder(name) / "state"

    def server_table(self) -> dict[str, object]:
        """Return the coordinator's ``server.toml``, on ports that are free now."""
        listen = {name: f"127.0.0.1:{free_port()}" for name in ("gate", "control", "fleet")}
        if self.tee is Tee.TPM:
            trust, known = "tpm_aks", self.pinned
        else:
            sites = tuple(name for name in self.machines if name != COORDINATOR)
            trust, known = "insecure_sample_keys", sites
        return {
            "state": "state",
            "trust_domain": _TRUST_DOMAIN,
            "listen": listen,
            "keys": {"protect": ["passphrase"], "passphrase_file": "../operator/passphrase"},
            "attester": self.machines[COORDINATOR].table(),
            "trust": {trust: self.anchors(known)},
        }

    def site_table(self, party: Party, bundle: bytes) -> dict[str, object]:
        """Return a site's ``site.toml``; ``bundle`` is the one that it accepts, if not empty."""
        trust = "tpm_aks" if self.tee is Tee.TPM else "insecure_sample_keys"
        accept: dict[str, object] = {
            "visible_updates": party.visible_updates,
            "app_logs": party.app_logs,
        }
        if self._insecure_any_bundle:
            accept["other_bundles"] = "insecure-accept"
        if bundle:
            accept["bundles"] = [bundle.hex()]
        return {
            "state": "state",
            "launcher": {"kind": "process"},
            "attester": party.machine.table(),
            "accept": accept,
            "trust": {trust: self.anchors([COORDINATOR])},
            "data": {
                name: {"path": os.path.relpath(path, party.folder)}
                for name, path in party.data.items()
            },
        }

    def _connect(self, process: Child | Daemon) -> OperatorClient:
        from fedlearn.wire.operator import OperatorClient

        login = OperatorLogin.load(self.login)

        def attempt() -> tuple[OperatorClient | None, FedlearnError | None]:
            process.check()
            client = OperatorClient(
                address=login.address, ca=login.ca, chain=login.chain, key=login.key
            )
            try:
                client.list_sites()
            except TransportError as error:
                client.close()
                return None, error
            return client, None

        client, error = _poll(attempt, until=lambda found: found[0] is not None)
        if client is None:
            raise LaunchError(f"the coordinator does not answer: {error}\n{process.tail()}")
        return client


def program(name: str) -> Path:
    """Return the path of a command of fedlearn: next to this Python, or on the path.

    :raises ConfigError: when this installation has no commands.
    """
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return beside
    found = shutil.which(name, path=os.environ.get("PATH"))
    if found is None:
        raise ConfigError(
            f"the command {name} is not installed", hint="pip install the package fedlearn"
        )
    return Path(found)


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _poll(look: Callable[[], _T], *, until: Callable[[_T], bool]) -> _T:
    """Poll until the condition holds or the time is up; return the last result."""
    end = time.monotonic() + _START_SECONDS
    while True:
        seen = look()
        if until(seen) or time.monotonic() > end:
            return seen
        time.sleep(_POLL_SECONDS)
