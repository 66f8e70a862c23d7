"""The SPIFFE ids of fedlearn, one type for each kind of party.

::

    spiffe://<trust domain>/job/<run>/site/<site>/client/<client>     ClientId
    spiffe://<trust domain>/site/<site>                               SiteId
    spiffe://<trust domain>/operator/<name>                           OperatorId
    spiffe://<trust domain>/coordinator                               CoordinatorId

Format: SPIFFE-ID, section 2. These ids are stricter than the standard: names are DNS labels
(RFC 1123), so that no id needs escaping and none can be mistaken for another. A job is named by
the id of its run (:mod:`fedlearn.job.run`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import ConfigError, TransportError
from fedlearn.job.run import checked_run_id

__all__ = [
    "COORDINATOR_DNS",
    "MAX_URI_BYTES",
    "NAME",
    "ClientId",
    "CoordinatorId",
    "OperatorId",
    "SiteId",
    "SpiffeId",
    "checked_name",
    "checked_trust_domain",
    "parse",
]

MAX_URI_BYTES: Final = 512
NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")

COORDINATOR_DNS: Final = "coordinator.fedlearn.internal"
"""A DNS name in every coordinator certificate, next to its addresses.

A peer that pins the coordinator's CA or certificate checks this name instead of the address, so
that a forwarded port or a changed address needs no new certificate.
"""


def checked_name(value: str, what: str) -> str:
    """Return ``value`` if it may name a site, client or operator.

    :raises ConfigError: naming ``what`` otherwise.
    """
    if len(value) > 63 or NAME.fullmatch(value) is None:
        shown = ascii(value if len(value) <= 64 else value[:61] + "...")
        raise ConfigError(
            f"{shown} is not a name",
            key=what,
            hint="use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        )
    return value


def checked_trust_domain(value: str) -> str:
    """Return ``value`` if it may be a trust domain.

    :raises ConfigError: otherwise.
    """
    if len(value) > 128 or _TRUST_DOMAIN.fullmatch(value) is None:
        raise ConfigError(
            f"{value[:64]!a} is not a trust domain",
            key="trust_domain",
            hint="use a lower-case DNS name such as hospital-network.example",
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientId:
    """A client of one run of a job at one site."""

    trust_domain: str
    job: str
    site: str
    client: str

    def __post_init__(self) -> None:
        checked_trust_domain(self.trust_domain)
        checked_run_id(self.job)
        checked_name(self.site, "site")
        checked_name(self.client, "client")

    def __str__(self) -> str:
        """Return the URI."""
        return f"spiffe://{self.trust_domain}/job/{self.job}/site/{self.site}/client/{self.client}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteId:
    """An enrolled site: its agent."""

    trust_domain: str
    site: str

    def __post_init__(self) -> None:
        checked_trust_domain(self.trust_domain)
        checked_name(self.site, "site")

    def __str__(self) -> str:
        """Return the URI."""
        return f"spiffe://{self.trust_domain}/site/{self.site}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorId:
    """A person or program that submits jobs and approves sites."""

    trust_domain: str
    name: str

    def __post_init__(self) -> None:
        checked_trust_domain(self.trust_domain)
        checked_name(self.name, "operator")

    def __str__(self) -> str:
        """Return the URI."""
        return f"spiffe://{self.trust_domain}/operator/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorId:
    """The coordinator of a trust domain."""

    trust_domain: str

    def __post_init__(self) -> None:
        checked_trust_domain(self.trust_domain)

    def __str__(self) -> str:
        """Return the URI."""
        return f"spiffe://{self.trust_domain}/coordinator"


SpiffeId = ClientId | SiteId | OperatorId | CoordinatorId


def parse(uri: str) -> SpiffeId:
    """Return the identity that ``uri`` names.

    :raises TransportError: for anything that is not one of the four forms.
    """
    scheme = "spiffe://"
    if len(uri) > MAX_URI_BYTES or not uri.isascii() or not uri.startswith(scheme):
        raise TransportError(f"{uri[:80]!a} is not a SPIFFE id of fedlearn")
    domain, *path = uri.removeprefix(scheme).split("/")
    try:
        match path:
            case ["job", job, "site", site, "client", client]:
                return ClientId(trust_domain=domain, job=job, site=site, client=client)
            case ["site", site]:
                return SiteId(trust_domain=domain, site=site)
            case ["operator", name]:
                return OperatorId(trust_domain=domain, name=name)
            case ["coordinator"]:
                return CoordinatorId(trust_domain=domain)
    except ConfigError as error:
        raise TransportError(f"{uri[:80]!a} is not a SPIFFE id of fedlearn: {error}") from None
    raise TransportError(f"{uri[:80]!a} is not a SPIFFE id of fedlearn")
