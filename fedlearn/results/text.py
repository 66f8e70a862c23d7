"""Events, sizes, durations and metrics as text, for the terminal and for pages.

Each text is one line without control characters, also where it has words of other parties; a page
escapes it for HTML in addition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from fedlearn.job import events
from fedlearn.job.event_fields import Findings
from fedlearn.results.refusals import findings_against
from fedlearn.terminal.plaintext import printable

__all__ = [
    "bytes_text",
    "compression_text",
    "event_text",
    "metric_texts",
    "metrics_text",
    "privacy_text",
    "ranked_metrics",
    "seconds_text",
    "time_text",
]

_METRICS_SHOWN: Final = 3
_YEAR_10000: Final = 253_402_300_800_000


def bytes_text(count: int) -> str:
    """Return a size with a binary unit: ``1.4 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def compression_text(title: str, received: int, saved: int) -> str:
    """Return the compression of a run and what it saved; empty for none."""
    if not title or not received:
        return title
    return f"{title}: {bytes_text(received)} instead of {bytes_text(received + saved)}"


def seconds_text(seconds: float) -> str:
    """Return a duration: ``0.42 s``, ``3 min 05 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def metrics_text(metrics: Mapping[str, float], first: str = "") -> str:
    """Return a few metrics: ``first``, then the loss, then the others by name."""
    return "  ".join(metric_texts(metrics, first))


def metric_texts(metrics: Mapping[str, float], first: str = "") -> list[str]:
    """Return the texts of :func:`metrics_text`, one for each metric."""
    texts = []
    for key in ranked_metrics(metrics, first)[:_METRICS_SHOWN]:
        value = metrics[key]
        shown = f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.4g}"
        texts.append(f"{printable(key)} {shown}")
    return texts


def ranked_metrics(metrics: Iterable[str], first: str = "") -> list[str]:
    """Return names of metrics as they are shown: ``first``, then the loss, then by name."""
    return sorted(metrics, key=lambda key: (key != first, key != "loss", key))


def time_text(unix_ms: int) -> str | None:
    """Return a time as RFC 3339 in UTC with milliseconds; None for one that is not known.

    >>> time_text(1_700_000_000_500)
    '2023-11-14T22:13:20.500Z'
    """
    if not 0 < unix_ms < _YEAR_10000:
        return None
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def privacy_text(spent: events.PrivacySpent) -> str:
    """Return an epsilon together with the values on which it depends."""
    limit = f" of {spent.limit:g}" if spent.limit else ""
    return printable(
        f"epsilon {spent.epsilon:.3f}{limit} at delta {spent.delta:g}, unit {spent.unit}, "
        f"{spent.sampling}, accountant {spent.accountant}"
    )


def event_text(event: events.Event, metric: str = "") -> str:
    """Return one line of text for ``event``; empty for an event without one."""
    return printable(_sentence(event, metric))


def _sentence(event: events.Event, metric: str) -> str:
    match event:
        case events.JobSubmitted():
            return f"job {event.job}: {event.rounds} rounds, {len(event.sites)} sites"
        case events.JobStarted():
            again = f", continued after round {event.resumed_from}" if event.resumed_from else ""
            return f"job {event.job}: started{again}"
        case events.ClientStarting():
            return f"site {event.site}: starting {event.detail}".rstrip()
        case events.ClientAdmitted():
            return f"site {event.site}: admitted ({event.tee})"
        case events.ClientRefused():
            return f"site {event.site}: REFUSED: {event.reason}{_why(event.findings)}"
        case events.ClientQuarantined():
            return f"site {event.site}: QUARANTINED: {event.reason}{_why(event.findings)}"
        case events.ClientLost():
            return f"site {event.site}: lost, {event.reason}"
        case events.UpdateRejected():
            return f"round {event.round}: update of {event.site} dropped: {event.reason}"
        case events.RoundStarted():
            return f"round {event.round}/{event.rounds}: started on {len(event.sites)} sites"
        case events.RoundFinished():
            total = f"/{event.rounds}" if event.rounds else ""
            numbers = f"{event.sites} sites  {seconds_text(event.seconds)}"
            numbers += f"  {bytes_text(event.bytes)}  {metrics_text(event.metrics, metric)}"
            return f"round {event.round}{total}: {numbers}".rstrip()
        case events.RoundSkipped():
            return f"round {event.round}/{event.rounds}: SKIPPED: {event.reason}"
        case events.RoundWaiting():
            until = time_text(event.until_unix_ms)
            limit = f" until {until[11:19]} UTC" if until else ""
            return f"round {event.round}/{event.rounds} waits for {event.detail}{limit}"
        case events.PrivacySpent():
            return f"round {event.round}: {privacy_text(event)}"
        case events.Log():
            return f"{event.site or 'server'} | {event.line}"
        case events.JobFinished():
            model = f", model {event.model} is sealed" if event.model else ""
            tail = f": {event.detail}" if event.detail else ""
            return f"job finished{model}{tail}"
        case events.JobFailed() | events.JobCancelled() | events.JobInterrupted():
            hint = f" ({event.hint})" if isinstance(event, events.JobFailed) and event.hint else ""
            return f"{event.kind.replace('.', ' ')}: {event.detail}{hint}".rstrip(": ")
        case events.OtherEvent():
            return f"{event.name}: {dict(event.body)}"
        case _:
            return ""


def _why(findings: Findings) -> str:
    wrong = findings_against(findings)
    if not wrong:
        return ""
    first = wrong[0]
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (
        f" [{first.get('claim')}: expected {first.get('expected')}, "
        f"found {first.get('actual')}{more}]"
    )
