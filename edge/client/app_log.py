"""Where the output of the app goes: to the owner of the job, sealed, or nowhere.

The app's output never enters the client's own log, which others read: the site's administrator,
and in a cluster the host of the TEE. The only exception is a development machine
(:class:`PlainAppLog`).

The page is docs/adr/0031-app-logs.md.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
from collections.abc import Callable
from typing import Final, Protocol, TextIO

from edge.client.app_output import BoundedOutput, LineSplitter
from edge.client.log_records import bounded_text, line_text
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.errors import ConfigError, FedlearnError, JobError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.spec import JobSpec
from fedlearn.job.tables import MAX_ROUNDS
from fedlearn.sealing.app_log import STREAM_BYTES, AppLogLine, AppLogName, seal_app_log
from fedlearn.terminal.plaintext import printable

__all__ = [
    "PREFIX",
    "AppLog",
    "DiscardedAppLog",
    "PlainAppLog",
    "SealingAppLog",
    "app_log_for",
    "plain_is_possible",
]

PREFIX: Final = "app: "
"""Begins each line of the app in the client's log on a development machine."""

_LOG = logging.getLogger(__name__)
_MAX_PLAIN_BYTES: Final = 64 * 1024 * 1024

Deliver = Callable[[SealedAppLog], object]
"""``deliver(log)`` sends a sealed log to the coordinator as the admitted client."""


class AppLog(Protocol):
    """Takes what the app writes. Safe to use from many threads."""

    def write(self, data: bytes) -> None:
        """Take what the app's process has written."""
        ...

    def note(self, text: str) -> None:
        """Take a line about the app."""
        ...

    def deliver(self, round_: int) -> None:
        """End the log of a round; it does not raise when the log cannot be delivered."""
        ...


class DiscardedAppLog:
    """Keeps nothing."""

    def write(self, data: bytes) -> None:
        """Keep nothing."""

    def note(self, text: str) -> None:
        """Keep nothing."""

    def deliver(self, round_: int) -> None:
        """Deliver nothing."""


class PlainAppLog:
    """Insecure: writes the app's lines into the client's own log, in the clear.

    Each line begins with :data:`PREFIX` and is one line, whatever is in it.
    """

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._splitter = LineSplitter()
        self._left = _MAX_PLAIN_BYTES

    def write(self, data: bytes) -> None:
        """Write the lines that end in ``data``."""
        with self._lock:
            start = 0
            while start < len(data) and self._left > 0:
                line, start = self._splitter.feed(data, start)
                if line is not None:
                    self._show(line)

    def note(self, text: str) -> None:
        """Write one line."""
        with self._lock:
            shown = bounded_text(text[:1000])
            self._show(AppLogLine(level="error", text=shown, logger="fedlearn"))

    def deliver(self, round_: int) -> None:
        """Write the line that has not ended yet."""
        with self._lock:
            if self._splitter.pending:
                self._show(self._splitter.flush())

    def _show(self, line: AppLogLine) -> None:
        text = f"{PREFIX}{printable(line_text(line))}\n"
        self._left -= len(text)
        if self._left <= 0:
            text = f"{PREFIX}its output exceeds the bound; the rest is left out\n"
        self._target.write(text)
        self._target.flush()


class SealingAppLog:
    """Seals the log of each round to the owner of the job.

    :param deliver: sends one log; a log that it cannot send leaves a gap, which the owner sees.
    :raises JobError: for a job that may not have logs.
    """

    def __init__(self, spec: JobSpec, *, site: str, client: str, deliver: Deliver) -> None:
        if spec.app_logs != "sealed" or spec.privacy is not None or not spec.owner_key:
            # A job that contradicts itself cannot be made (JobSpec); this does not rely on it.
            raise JobError(f"job {spec.name} may not have logs of its app")
        self._spec = spec
        self._site = site
        self._client = client
        self._deliver = deliver
        self._stream = secrets.token_bytes(STREAM_BYTES)
        self._sequence = 0
        self._lock = threading.Lock()
        self._output = BoundedOutput()

    def write(self, data: bytes) -> None:
        """Take what the app's process has written."""
        with self._lock:
            self._output.feed(data)

    def note(self, text: str) -> None:
        """Take a line about the app."""
        with self._lock:
            self._output.note(text)

    def deliver(self, round_: int) -> None:
        """Seal the log of a round and deliver it, if the app has written anything."""
        with self._lock:
            log, self._output = self._output.finish(), BoundedOutput()
            if not log.lines:
                return
            sequence, self._sequence = self._sequence, self._sequence + 1
        name = AppLogName(
            job=self._spec.name,
            digest=self._spec.digest(),
            site=self._site,
            client=self._client,
            stream=self._stream,
            round=min(max(round_, 0), MAX_ROUNDS),
            sequence=sequence,
        )
        sealed = SealedAppLog(
            client=self._client,
            stream=self._stream,
            round=name.round,
            sequence=sequence,
            sealed=seal_app_log(log, name, self._spec.owner_public_key()),
        )
        try:
            self._deliver(sealed)
        except FedlearnError as error:
            _LOG.warning("the app's log of round %d was not delivered: %s", round_, error)


def plain_is_possible(attester: AttesterSettings, *, in_pod: bool) -> bool:
    """Return whether a client may write what the app prints into its own log.

    Never in a pod, and never beside hardware that keeps memory secret from the machine's
    administrator. A software TPM reaches the client as a TPM; the agent tells the two apart
    (:class:`edge.config.site.SiteConfig`).
    """
    return not in_pod and (attester.insecure or attester.kind == "tpm")


def app_log_for(
    spec: JobSpec,
    *,
    mode: str,
    plain: bool,
    site: str,
    client: str,
    deliver: Deliver,
) -> AppLog:
    """Return where the output of the app of ``spec`` goes, as the site allows it by ``mode``.

    :param mode: ``accept.app_logs`` of the site, whose agent is not trusted: what the job does not
        ask for is not delivered, and nothing is shown in the clear beside a real TEE.
    :param plain: whether this client is a process of a machine that keeps nothing secret from its
        administrator, as :func:`plain_is_possible` finds.
    :raises ConfigError: when the mode is not one, or is not possible here.
    """
    if mode == "insecure-plain":
        if not plain:
            raise ConfigError(
                '"insecure-plain" shows what the app writes to whoever reads the log of this '
                "client, which runs in a pod or has an attester of a TEE",
                key="accept.app_logs",
                hint='set "sealed" or "off"',
            )
        return PlainAppLog(sys.stderr)
    if mode not in ("off", "sealed"):
        raise ConfigError(
            f"is none of off, sealed and insecure-plain: {mode[:40]!r}", key="app_logs"
        )
    if mode == "sealed" and spec.app_logs == "sealed":
        return SealingAppLog(spec, site=site, client=client, deliver=deliver)
    return DiscardedAppLog()
