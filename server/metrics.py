"""Counts of what a coordinator does, for Prometheus, and whether it works. Nothing secret.

``GET /metrics`` answers in the text format 0.0.4 over plain HTTP. ``GET /readyz`` answers 200 when
nothing is wrong, and 503 with one line for each fault otherwise; ``GET /livez`` answers 200 while
the process answers. It is off unless ``[metrics] listen`` names an address; a peer that reaches it
sees how many sites, jobs and admissions there are, how fast they change, and the names of jobs
that a fault holds up. One request is answered at a time.

The page is docs/reference/metrics.md.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final

from fedlearn.errors import ConfigError
from server.admission.registry import AdmissionEvent, Change

__all__ = [
    "ADMISSIONS",
    "ADMISSION_CHANGES",
    "FAULTS",
    "JOBS",
    "LEDGER_ENTRIES",
    "METRICS",
    "SITES",
    "AdmissionCounts",
    "Gauge",
    "exposition",
    "serve_metrics",
]

_LOG = logging.getLogger(__name__)
_SECONDS: Final = 5.0
_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """One metric and its values, by the value of ``label``; ``""`` when it has no label.

    ``kind`` is ``gauge`` or ``counter``.
    """

    name: str
    help: str
    values: Mapping[str, float]
    label: str = ""
    kind: str = "gauge"


JOBS: Final = Gauge(name="fedlearn_jobs", help="Jobs, by status.", values={}, label="status")
SITES: Final = Gauge(name="fedlearn_sites", help="Sites, by status.", values={}, label="status")
LEDGER_ENTRIES: Final = Gauge(
    name="fedlearn_ledger_entries", help="Entries of the ledger.", values={}
)
FAULTS: Final = Gauge(
    name="fedlearn_faults", help="Faults that exist now; /readyz names them.", values={}
)
ADMISSIONS: Final = Gauge(
    name="fedlearn_admissions", help="Clients that are admitted now.", values={}
)
ADMISSION_CHANGES: Final = Gauge(
    name="fedlearn_admission_changes_total",
    help="Changes of admissions since the start.",
    values={},
    label="change",
    kind="counter",
)
METRICS: Final = (JOBS, SITES, LEDGER_ENTRIES, FAULTS, ADMISSIONS, ADMISSION_CHANGES)
"""Every metric of a coordinator, without values."""


class AdmissionCounts:
    """How often admissions changed, and how many are in force; a subscriber of the registry."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: Counter[str] = Counter({change.value: 0 for change in Change})
        self._live = 0

    def __call__(self, event: AdmissionEvent) -> None:
        """Count one change."""
        with self._lock:
            self._changes[event.change.value] += 1
            if event.change is Change.ADMITTED:
                self._live += 1
            elif event.change is not Change.RENEWED:
                self._live -= 1

    def gauges(self) -> tuple[Gauge, Gauge]:
        """Return what was counted."""
        with self._lock:
            changes, live = dict(self._changes), self._live
        return (
            replace(ADMISSIONS, values={"": live}),
            replace(ADMISSION_CHANGES, values=changes),
        )


def exposition(gauges: Iterable[Gauge]) -> str:
    """Return metrics in Prometheus' text format."""
    lines = []
    for gauge in gauges:
        lines += [f"# HELP {gauge.name} {gauge.help}", f"# TYPE {gauge.name} {gauge.kind}"]
        for value, number in sorted(gauge.values.items()):
            label = f'{{{gauge.label}="{value}"}}' if gauge.label else ""
            lines.append(f"{gauge.name}{label} {number:g}")
    return "\n".join(lines) + "\n"


@contextmanager
def serve_metrics(
    address: str,
    read: Callable[[], Iterable[Gauge]],
    faults: Callable[[], Mapping[str, str]] = dict,
) -> Iterator[str]:
    """Answer at ``host:port`` while the context is entered; yield the address that is bound.

    ``faults`` returns what is wrong now, by name.

    :raises ConfigError: when the address cannot be bound.
    """

    class Answer(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version = "fedlearn"
        sys_version = ""

        def do_GET(self) -> None:
            status = 200
            try:
                if self.path == "/metrics":
                    body = exposition(read()).encode()
                elif self.path == "/readyz":
                    found = faults()
                    status = 503 if found else 200
                    lines = [f"{name}: {reason}" for name, reason in sorted(found.items())]
                    body = ("\n".join(lines or ["ok"]) + "\n").encode()
                elif self.path == "/livez":
                    body = b"ok\n"
                else:
                    self.send_error(404)
                    return
            except Exception:  # noqa: BLE001 (logged; a failed count must not end the server)
                _LOG.exception("%s could not be answered", self.path)
                self.send_error(500)
                return
            self.send_response(status)
            self.send_header("Content-Type", _TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (theirs)
            _LOG.debug(format, *args)

    host, _, port = address.rpartition(":")
    try:
        server = HTTPServer((host.strip("[]"), int(port)), Answer)
    except OSError as error:
        raise ConfigError(
            f"{address} cannot be bound: {error.strerror}", key="metrics.listen"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_SECONDS)
