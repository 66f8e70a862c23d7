"""How many files a coordinator may open: enough for its sites, and how many strangers beside them.

A connection to gRPC has three (:class:`server.rpc.connections.Relay`), one to the fleet listener
has one. So a site has four: the stream of its agent, and the connection of its client.
"""

from __future__ import annotations

import resource
from typing import Final

from fedlearn.errors import ConfigError
from server.rpc.connections import Caps

__all__ = ["caps_of", "check_open_files", "raise_open_files"]

_OPEN_FILES: Final = 65_536
_FOR_EACH_SITE: Final = 4
_FOR_THE_REST: Final = 96
_FOR_EACH_STRANGER: Final = 16
"""For each connection without a certificate: two gRPC listeners with three each, one at Fleet, and
as many again for those with a certificate, and for the rest."""


def raise_open_files(sites: int) -> None:
    """Allow this process as many open files as it may have, and as many as ``sites`` need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_OPEN_FILES, _needed(sites))
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files(sites: int) -> None:
    """Check that all of ``limits.sites`` can be connected at once.

    :raises ConfigError: when this process may open fewer files than that needs.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _needed(sites)
    if soft != resource.RLIM_INFINITY and soft < needed:
        fitting = max(1, (soft - _FOR_THE_REST) // _FOR_EACH_SITE)
        raise ConfigError(
            f"{sites} sites need {needed} open files, and this process may open {soft}",
            where="server.toml",
            key="limits.sites",
            hint=f"run `ulimit -n {needed}` first, or set LimitNOFILE={needed} in the unit; "
            f"or lower limits.sites to {fitting}",
        )


def caps_of(*, connections: int, per_peer: int, per_identity: int) -> Caps:
    """Return what one listener holds: of peers without a certificate, fewer where files are few."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unknown = connections
    if files != resource.RLIM_INFINITY:
        unknown = max(16, min(unknown, files // _FOR_EACH_STRANGER))
    # One address has the same part of few connections as of many.
    per_peer = per_peer * unknown // connections
    return Caps(
        unknown=unknown,
        unknown_per_peer=min(max(4, per_peer), unknown),
        per_identity=per_identity,
    )


def _needed(sites: int) -> int:
    return _FOR_EACH_SITE * sites + _FOR_THE_REST
