"""What an app wrote at the sites of a job: fetched as an operator, opened as the job's owner.

What the coordinator sends is trusted as far as :mod:`fedlearn.sealing.app_log` guarantees it: a log
that was altered, or is another job's or site's, does not open; one that is missing, repeated or out
of order is named.

The page is docs/how-to/read-an-apps-logs.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import UnsealError
from fedlearn.errors import KeyReleaseDenied
from fedlearn.job.app_log import SealedAppLog
from fedlearn.sealing.app_log import AppLogLine, AppLogName, OpenedAppLog, open_app_log

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient
    from fedlearn.wire.owner import OwnerClient

__all__ = ["AppLog", "AppLogs", "fetch_app_logs", "fetch_app_logs_as_owner", "open_app_logs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppLog:
    """What an app wrote in one round. ``left_out`` lines were beyond the bound of a round."""

    client: str
    round: int
    lines: tuple[AppLogLine, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppLogs:
    """The logs of one site, in the order of their rounds at the client.

    ``faults``  what is missing, was repeated, or did not open, each in one sentence
    """

    job: str
    site: str
    logs: tuple[AppLog, ...]
    faults: tuple[str, ...] = ()


def fetch_app_logs(client: OperatorClient, job: str, site: str, key: X25519PrivateKey) -> AppLogs:
    """Fetch the logs of a job's app at one site, and open them with the key of the job's owner.

    :raises JobError: when there is no such job or site, or the job was submitted without logs.
    :raises KeyReleaseDenied: when there are logs, and none opens with this key.
    """
    state = client.get_job(job)
    logs = client.fetch_app_logs(state.reference, site)
    return open_app_logs(logs, state.run_id or state.name, bytes.fromhex(state.id), site, key)


def fetch_app_logs_as_owner(
    owner: OwnerClient, job: str, site: str, key: X25519PrivateKey
) -> AppLogs:
    """Fetch and open the logs as the job's owner, who needs no login; see :func:`fetch_app_logs`.

    :raises JobError: when no such logs are sealed for the key of ``owner``.
    :raises KeyReleaseDenied: when there are logs, and none opens with ``key``.
    """
    with owner.fetch_app_logs(job, site) as (run, digest, logs):
        return open_app_logs(logs, run, digest, site, key)


def open_app_logs(
    fetched: Iterable[SealedAppLog], job: str, digest: bytes, site: str, key: X25519PrivateKey
) -> AppLogs:
    """Open logs and check their order; ``digest`` is that of the job, 32 bytes.

    :raises KeyReleaseDenied: when there are logs, and none opens with this key.
    """
    logs: list[AppLog] = []
    faults: list[str] = []
    expected: dict[tuple[str, bytes], int] = {}
    sealed = 0
    for log in fetched:
        where = f"log {log.sequence} of client {log.client} (round {log.round})"
        stream = log.client, log.stream
        faults += _order(log, where, expected.get(stream, 0), new=stream not in expected)
        if log.sequence < expected.get(stream, 0):
            continue
        expected[stream] = log.sequence + 1
        if log.fault:
            faults.append(f"{where} is not there: {log.fault}")
            continue
        sealed += 1
        try:
            opened = _opened(log, job, digest, site, key)
        except (UnsealError, ValueError):
            faults.append(
                f"{where} does not open: it was altered, or is not of this job, site and client"
            )
            continue
        logs.append(
            AppLog(client=log.client, round=log.round, lines=opened.lines, left_out=opened.left_out)
        )
    if sealed and not logs:
        mine = key.public_key().public_bytes_raw().hex()
        raise KeyReleaseDenied(
            f"none of the {sealed} logs of site {site} in job {job} opens with this key "
            f"({mine[:16]})",
            hint="use the private key whose public half is owner_key in job.toml",
        )
    return AppLogs(job=job, site=site, logs=tuple(logs), faults=tuple(faults))


def _opened(
    log: SealedAppLog, job: str, digest: bytes, site: str, key: X25519PrivateKey
) -> OpenedAppLog:
    name = AppLogName(
        job=job,
        digest=digest,
        site=site,
        client=log.client,
        stream=log.stream,
        round=log.round,
        sequence=log.sequence,
    )
    return open_app_log(log.sealed, name, key)


def _order(log: SealedAppLog, where: str, expected: int, *, new: bool) -> list[str]:
    """Return what is wrong with the place of a log; ``expected`` is the number that follows."""
    if log.sequence < expected:
        return [f"{where} is left out: it was repeated, or is not in its place"]
    if log.sequence == expected:
        return []
    last = log.sequence - 1
    logs = f"log {last}" if last == expected else f"logs {expected} to {last}"
    what = "is missing" if last == expected else "are missing"
    why = "; the coordinator keeps the newest logs of a site" if new else ""
    return [f"{logs} of client {log.client} {what} before round {log.round}{why}"]
