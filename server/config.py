# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""``server.toml``: one coordinator.

::

    state = "state"                        # everything that the coordinator keeps
    trust_domain = "hospitals.example"     # of all certificates that it issues

    [listen]                               # defaults shown; port 0 takes any free one
    gate = "127.0.0.1:9443"                # TLS: challenge, admission, enrollment
    control = "127.0.0.1:9444"             # mTLS: sites, clients, operators
    fleet = "127.0.0.1:9445"               # mTLS: model traffic

    [advertise]                            # addresses for others; needed for 0.0.0.0 and [::]
    gate = "coordinator.hospitals.example:9443"

    [keys]                                 # what keeps the root key; at least one
    protect = ["tpm-policy", "recovery-key", "passphrase"]
    recovery_key = "recovery.pub.pem"      # X25519; its private half stays offline
    passphrase_file = "/run/secrets/root"  # for "passphrase"; read once at the start

    [attester]                             # what proves the coordinator; see attesterfile
    [certificates]                         # lifetimes in seconds
    [limits]                               # bounds for peers and jobs
    [trust]                                # extra anchors for verifying clients
    [jobs]

    [metrics]
    listen = "127.0.0.1:9446"              # counts for Prometheus; nowhere by default

The page is docs/reference/server.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from attestation.config import (
    InconsistentValues,
    choice,
    file_path,
    flag,
    hexadecimal,
    matching,
    number,
    option,
    seq,
    table,
    text,
    whole,
)
from fedlearn import config
from fedlearn.config import address
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.trustfile import Trust

__all__ = [
    "Advertise",
    "Certificates",
    "JobSettings",
    "Keys",
    "Limits",
    "Listen",
    "Metrics",
    "ServerConfig",
    "ServerTrust",
]

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
_PROTECTORS: Final = ("tpm-policy", "recovery-key", "passphrase", "insecure-plain-key-file")
_MADE_BY: Final = "fedlearn-server init"
_MAX_SOCKET_NAME: Final = 107  # unix(7)
_EVERYWHERE: Final = frozenset({"0.0.0.0", "[::]", "[0::0]"})  # noqa: S104 (compared, not bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the three listeners are bound; port 0 takes any free one.

    ``gate``     TLS: challenge, admission, enrollment
    ``control``  mutual TLS: sites, clients, operators
    ``fleet``    mutual TLS: model traffic
    """

    gate: str = option(address(port_zero=True), default="127.0.0.1:9443")
    control: str = option(address(port_zero=True), default="127.0.0.1:9444")
    fleet: str = option(address(port_zero=True), default="127.0.0.1:9445")

    def __post_init__(self) -> None:
        ports = [item for item in (self.gate, self.control, self.fleet) if _port(item)]
        for name in ("control", "fleet"):
            if ports.count(getattr(self, name)) > 1:
                raise InconsistentValues(((name,), "is the address of another listener as well"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertise:
    """The addresses given to sites, clients and operators. Empty: the address that is bound.

    ``gate``, ``control``, ``fleet``  the address at which others reach this listener
    """

    gate: str = option(address(), default="")
    control: str = option(address(), default="")
    fleet: str = option(address(), default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The protectors of the root key of the key service while the coordinator is not running.

    ``protect``          any one of them opens it; ``insecure-plain-key-file`` must be the only one
    ``recovery_key``     an X25519 public key, PEM; its private half stays offline
    ``passphrase_file``  read once at the start
    ``tcti``             how tpm2-tools reach the TPM
    ``pcrs``             the registers that must keep their values
    ``key_id``           the root key that must be found; another party's state folder is refused
    """

    protect: tuple[str, ...] = option(seq(choice(*_PROTECTORS), least=1, most=4, unique=True))
    recovery_key: Path | None = option(file_path(), default=None)
    passphrase_file: Path | None = option(file_path(), default=None)
    tcti: str = option(text(most=512), default="device:/dev/tpmrm0")
    pcrs: tuple[int, ...] = option(
        seq(whole(0, 23), least=1, most=24, unique=True), default=(0, 2, 4, 7)
    )
    key_id: str = option(text(most=128), default="")

    def __post_init__(self) -> None:
        faults: list[tuple[tuple[str, ...], str]] = []
        for kind, key in (("recovery-key", "recovery_key"), ("passphrase", "passphrase_file")):
            wanted, given = kind in self.protect, getattr(self, key) is not None
            if wanted and not given:
                faults.append((("protect",), f'"{kind}" needs the key {key!r}'))
            if given and not wanted:
                faults.append(((key,), f'is not used; add "{kind}" to protect'))
        if self.insecure and len(self.protect) > 1:
            faults.append(
                (
                    ("protect",),
                    f'"{_PROTECTORS[-1]}" must be the only protector: it leaves the key readable',
                )
            )
        if faults:
            raise InconsistentValues(*faults)

    @property
    def insecure(self) -> bool:
        """True when a copy of the disk is enough to open everything."""
        return "insecure-plain-key-file" in self.protect


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Lifetimes.

    ``client_s``       seconds that a client's certificate is valid
    ``renew_after_s``  seconds after which a client may attest again
    ``renew_by_s``     seconds after which a client must have attested again
    ``site_days``      days that a site's certificate is valid
    ``token_s``        seconds that a join token is valid
    """

    client_s: int = option(whole(60, 1800), default=1800)
    renew_after_s: int = option(whole(5, 600), default=300)
    renew_by_s: int = option(whole(10, 600), default=600)
    site_days: int = option(whole(1, 7), default=1)
    token_s: int = option(whole(60, 30 * 86_400), default=86_400)

    def __post_init__(self) -> None:
        if not self.renew_after_s < self.renew_by_s <= self.client_s:
            raise InconsistentValues(
                (("renew_by_s",), "must be above renew_after_s and at most client_s")
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds for peers and jobs.

    ``challenges``           nonces that are issued and not used
    ``challenges_per_peer``  the same of one address; of one /64 in IPv6
    ``requests_per_second``  at the gate, from all peers together
    ``requests_per_second_per_peer``
                             the same of one address; of one /64 in IPv6
    ``connections``          of peers without a certificate yet, at each listener; fewer where the
                             process may open too few files
    ``connections_per_peer``
                             the same of one address; of one /64 in IPv6
    ``update_mib``           the largest update that is read
    ``deliveries_mib``       the largest sum of the updates that are read at once
    ``jobs``                 jobs that run at once
    ``sites``                sites that may be invited, those that were removed included; the
                             process must be able to open four files for each
    """

    challenges: int = option(whole(16, 1_000_000), default=4096)
    challenges_per_peer: int = option(whole(1, 100_000), default=256)
    requests_per_second: float = option(number(1, 100_000), default=400.0)
    requests_per_second_per_peer: float = option(number(0.1, 10_000), default=32.0)
    connections: int = option(whole(16, 100_000), default=1024)
    connections_per_peer: int = option(whole(1, 100_000), default=256)
    update_mib: int = option(whole(1, 1024 * 1024), default=4096)
    deliveries_mib: int = option(whole(1, 1024 * 1024), default=8192)
    jobs: int = option(whole(1, 1000), default=8)
    sites: int = option(whole(1, 100_000), default=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTrust(Trust):
    """Anchors for verifying clients, and the keys that may sign the policies of jobs.

    ``policy_keys``  SHA-256 of the SPKI of operators' policy keys; when there are any, a
                     policy that none of them signed, or an older one, is refused
    """

    policy_keys: tuple[bytes, ...] = option(seq(hexadecimal(32), most=100), default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """How jobs run at the coordinator.

    ``resume``          continue interrupted jobs when the coordinator starts
    ``keep_checkpoints``
                        how many checkpoints of a job are kept
    ``app_memory_mib``  memory, and disk, of the process that runs a job's ServerApp
    ``sandbox``         ``full`` refuses a job where the kernel lacks a protection for that
                        process; ``best-effort`` runs it and reports what is missing
    ``app_host``        the socket of `fedlearn-server app-host`, which runs these processes in
                        another container; without one, the coordinator runs them
    """

    resume: bool = option(flag(), default=True)
    keep_checkpoints: int = option(whole(1, 1000), default=2)
    app_memory_mib: int = option(whole(256, 16 * 1024 * 1024), default=8192)
    sandbox: str = option(choice("full", "best-effort"), default="best-effort")
    app_host: Path | None = option(file_path(), default=None)

    def __post_init__(self) -> None:
        if self.app_host is not None and len(os.fsencode(self.app_host)) > _MAX_SOCKET_NAME:
            fault = f"is longer than the {_MAX_SOCKET_NAME} bytes that a socket's name may have"
            raise InconsistentValues((("app_host",), fault))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Counts for Prometheus.

    ``listen``  where they are served over plain HTTP; nowhere when empty
    """

    listen: str = option(address(port_zero=True), default="")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One coordinator. Paths are relative to the file that named them.

    ``state``         the folder of everything that the coordinator keeps
    ``trust_domain``  of all certificates that it issues
    """

    state: Path = option(file_path())
    trust_domain: str = option(
        matching(_TRUST_DOMAIN, 'a lower-case DNS name such as "hospitals.example"')
    )
    keys: Keys = option(table(Keys))
    listen: Listen = option(table(Listen), factory=Listen)
    advertise: Advertise = option(table(Advertise), factory=Advertise)
    attester: AttesterSettings = option(table(AttesterSettings), factory=AttesterSettings)
    certificates: Certificates = option(table(Certificates), factory=Certificates)
    limits: Limits = option(table(Limits), factory=Limits)
    trust: ServerTrust = option(table(ServerTrust), factory=ServerTrust)
    jobs: JobSettings = option(table(JobSettings), factory=JobSettings)
    metrics: Metrics = option(table(Metrics), factory=Metrics)

    def __post_init__(self) -> None:
        faults: list[tuple[tuple[str, ...], str]] = []
        for name in ("gate", "control", "fleet"):
            bound = getattr(self.listen, name)
            if bound.rpartition(":")[0] in _EVERYWHERE and not getattr(self.advertise, name):
                message = f"needs advertise.{name}: no peer can connect to {bound}"
                faults.append((("listen", name), message))
        if faults:
            raise InconsistentValues(*faults)

    @classmethod
    def load(cls, path: Path) -> ServerConfig:
        """Return the configuration in ``path``.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        return config.read_file(cls, path, made_by=_MADE_BY)

    @classmethod
    def read(cls, path: Path) -> tuple[Self, Mapping[str, Any]]:
        """Return the configuration in ``path``, and the TOML document that it was read from.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        return config.read_document(cls, path, made_by=_MADE_BY)

    def advertised(self, listener: str, bound: str) -> str:
        """Return the address given to others for ``listener``, which is bound to ``bound``."""
        advertised: str = getattr(self.advertise, listener)
        return advertised or bound


def _port(bound: str) -> int:
    return int(bound.rpartition(":")[2])
