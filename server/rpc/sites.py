"""The Sites service: one long stream for each site, its certificate, and its bundles.

A stream costs no thread while it is idle. It ends at once when the site is removed, when its
certificate expires, or when the same site connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from datetime import datetime
from typing import Any

from fedlearn.errors import ConfigError, FedlearnError, NotEnrolled, TransportError
from fedlearn.job.phase import Phase
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire.channel import HEARTBEAT_SECONDS
from fedlearn.wire.phases import phase_of
from server.admission.gate import AdmissionGate
from server.identity.peer_certificates import csr_key, spki, thumbprint
from server.identity.pki import CertificateAuthority
from server.identity.site import Site, SiteStatus
from server.identity.site_registry import SiteRegistry
from server.identity.tpm_enrollment import TpmEnrollment
from server.rpc.gate import Welcome, enroll_reply
from server.rpc.guard import Caller
from server.rpc.ports import Coordinator, StartOrder, StopOrder

__all__ = ["SitesService"]

HELLO_SECONDS = 10.0
MAX_QUEUED = 256
MAX_RUNNING = 1000
MAX_TEXT = 2000
_CHUNK = 1024 * 1024
_REPORTS_AT_ONCE = 256.0
_REPORTS_PER_SECOND = 4.0


class _Stream:
    """The way to one connected site; :class:`server.rpc.ports.Orders`."""

    def __init__(self, site: str, loop: asyncio.AbstractEventLoop) -> None:
        self.site = site
        self._loop = loop
        self._queue: asyncio.Queue[pb.SiteOrder | FedlearnError] = asyncio.Queue()
        self._lock = threading.Lock()
        self._queued = 0
        self._closed = False
        self._tokens, self._at = _REPORTS_AT_ONCE, loop.time()
        self._reported: dict[str, tuple[Phase, str]] = {}

    def send(self, order: StartOrder | StopOrder) -> None:
        """Queue an order."""
        if isinstance(order, StartOrder):
            message = pb.SiteOrder(
                start=pb.SignedAssignment(
                    assignment_json=order.assignment_json, signature=order.signature
                )
            )
        else:
            message = pb.SiteOrder(
                stop=pb.StopOrder(assignment=order.assignment, reason=order.reason)
            )
        with self._lock:
            if self._closed:
                raise TransportError(f"site {self.site} is not connected")
            if self._queued >= MAX_QUEUED:
                raise TransportError(f"site {self.site} does not take its orders")
            self._queued += 1
        self._put(message)

    def close(self, reason: str) -> None:
        """End the stream; ``reason`` is sent to the site."""
        self.fail(TransportError(reason))

    def fail(self, error: FedlearnError) -> None:
        """End the stream with ``error``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._put(error)

    def pause(self) -> float:
        """Return seconds until the next report may be read; 0.0 counts one."""
        now = self._loop.time()
        self._tokens = min(_REPORTS_AT_ONCE, self._tokens + (now - self._at) * _REPORTS_PER_SECOND)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / _REPORTS_PER_SECOND
        self._tokens -= 1.0
        return 0.0

    def news(self, assignment: str, reported: tuple[Phase, str]) -> bool:
        """Return whether this differs from the last report on the assignment."""
        known = self._reported.pop(assignment, None)
        self._reported[assignment] = reported
        while len(self._reported) > MAX_RUNNING:
            del self._reported[next(iter(self._reported))]
        return known != reported

    async def next(self, timeout: float) -> pb.SiteOrder:
        """Return the next order; a heartbeat when there is none for ``timeout`` seconds.

        :raises FedlearnError: when the stream was ended.
        """
        try:
            item = await asyncio.wait_for(self._queue.get(), timeout)
        except TimeoutError:
            return pb.SiteOrder(heartbeat=pb.Heartbeat())
        if isinstance(item, FedlearnError):
            raise item
        with self._lock:
            self._queued -= 1
        return item

    def _put(self, item: pb.SiteOrder | FedlearnError) -> None:
        # The loop is closed only when the whole process ends.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


class SitesService:
    """Bodies of ``fedlearn.v1.Sites``. The guard has authenticated the site."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        sites: SiteRegistry,
        tpms: TpmEnrollment,
        gate: AdmissionGate,
        ca: CertificateAuthority,
        welcome: Welcome,
        clock: Callable[[], datetime],
        pool: Executor,
    ) -> None:
        self._coordinator = coordinator
        self._sites = sites
        self._tpms = tpms
        self._gate = gate
        self._ca = ca
        self._welcome = welcome
        self._clock = clock
        self._pool = pool
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        sites.subscribe(self._changed)

    def connected(self, site: str) -> bool:
        """Return whether the site has a stream."""
        with self._lock:
            return site in self._streams

    def RenewSite(self, request: pb.RenewSiteRequest, caller: Caller) -> pb.EnrollReply:  # noqa: N802
        """Give an enrolled site a new certificate for the key it enrolled with."""
        site = _site(caller)
        if thumbprint(spki(csr_key(request.csr))) != site.key_thumbprint:
            raise TransportError(
                f"site {site.name} is enrolled with another key",
                hint="a new key needs a new join token",
            )
        return enroll_reply(site, request.csr, self._ca, self._gate, self._welcome)

    def ProposeTpm(self, request: pb.ProposeTpmRequest, caller: Caller) -> pb.ProposeTpmReply:  # noqa: N802
        """Challenge the TPM that a site claims to have."""
        site = _site(caller)
        self._gate.count(f"tpm/{site.name}")
        proposal = self._tpms.propose(site.name, request.identity)
        return pb.ProposeTpmReply(
            challenge=proposal.challenge,
            blob=proposal.blob,
            expires_unix_ms=int(proposal.expires.timestamp() * 1000),
        )

    def ProveTpm(self, request: pb.ProveTpmRequest, caller: Caller) -> pb.ProveTpmReply:  # noqa: N802
        """Take the answer of a site's TPM."""
        outcome = self._tpms.prove(_site(caller).name, request.challenge, request.secret)
        return pb.ProveTpmReply(accepted=outcome.accepted, endorsement=outcome.endorsement)

    def FetchBundle(  # noqa: N802
        self, request: pb.FetchBundleRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.Chunk]:
        """Return an app bundle in chunks of 1 MiB."""
        if len(request.sha256) != 32:
            raise ConfigError("a SHA-256 has 32 bytes", key="sha256")
        bundle = self._coordinator.fetch_bundle(_site(caller).name, request.sha256)
        for start in range(0, len(bundle), _CHUNK):
            yield pb.Chunk(data=bundle[start : start + _CHUNK])

    async def Follow(  # noqa: N802
        self, reports: AsyncIterator[pb.SiteReport], caller: Caller
    ) -> AsyncIterator[pb.SiteOrder]:
        """Take reports and give orders until either side ends it."""
        site = _site(caller)
        if caller.certificate is None:
            raise TransportError("this service needs a client certificate")
        expires = caller.certificate.expires
        stream = _Stream(site.name, asyncio.get_running_loop())
        hello = await self._hello(reports)
        self._open(stream)
        reader: asyncio.Task[None] | None = None
        try:
            # The site may have been removed since the guard checked it.
            self._sites.authenticate(caller.certificate)
            await self._call(self._sites.seen, site.name)
            await self._call(self._greet, stream, hello)
            reader = asyncio.create_task(self._read(reports, stream))
            # The site sees at once that it is back, and waits no longer from now on.
            yield pb.SiteOrder(heartbeat=pb.Heartbeat())
            while True:
                left = (expires - self._clock()).total_seconds()
                if left <= 0:
                    raise TransportError(
                        f"the certificate of site {site.name} expired",
                        hint="renew it and connect again",
                    )
                yield await stream.next(min(HEARTBEAT_SECONDS, left))
        finally:
            stream.close("the stream ended")
            if reader is not None:
                reader.cancel()
            with self._lock:
                if self._streams.get(site.name) is stream:
                    del self._streams[site.name]
            # Not awaited: a cancelled call cannot wait, and the coordinator is notified of it too.
            self._pool.submit(self._coordinator.site_disconnected, site.name, stream)

    async def _hello(self, reports: AsyncIterator[pb.SiteReport]) -> pb.Hello:
        try:
            first = await asyncio.wait_for(anext(reports), HELLO_SECONDS)
        except (TimeoutError, StopAsyncIteration):
            raise TransportError("the first report of a site has to be hello") from None
        if first.WhichOneof("report") != "hello":
            raise TransportError("the first report of a site has to be hello")
        if len(first.hello.running) > MAX_RUNNING or len(first.hello.version) > 64:
            raise ConfigError("the greeting is too long", key="hello")
        return first.hello

    def _greet(self, stream: _Stream, hello: pb.Hello) -> None:
        self._coordinator.site_connected(
            stream.site, stream, version=hello.version, running=tuple(hello.running)
        )

    async def _read(self, reports: AsyncIterator[pb.SiteReport], stream: _Stream) -> None:
        """Hand on what the site reports, in order; end the stream when that ends."""
        try:
            async for report in reports:
                # Only a site that reports too much is read more slowly.
                while (pause := stream.pause()) > 0:
                    await asyncio.sleep(pause)
                await self._call(self._take, stream, report)
            stream.close("the site ended the stream")
        except FedlearnError as error:
            stream.fail(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            stream.close("the stream broke off")
            raise

    def _take(self, stream: _Stream, report: pb.SiteReport) -> None:
        site = stream.site
        self._sites.seen(site)
        match report.WhichOneof("report"):
            case "workload":
                workload = report.workload
                phase = phase_of(workload)
                if len(workload.reason) > MAX_TEXT or len(workload.assignment) > MAX_TEXT:
                    raise ConfigError(f"at most {MAX_TEXT} characters", key="reason")
                reported = (phase, workload.reason)
                if not stream.news(workload.assignment, reported):
                    return
                self._coordinator.workload_changed(
                    site,
                    assignment=workload.assignment,
                    phase=phase,
                    reason=workload.reason,
                )
            case "capabilities":
                self._sites.report_capabilities(site, report.capabilities.json)
            case "heartbeat":
                pass
            case _:
                raise ConfigError("a report of an unknown kind", key="report")

    async def _call(self, body: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, body, *arguments)

    def _open(self, stream: _Stream) -> None:
        with self._lock:
            former = self._streams.get(stream.site)
            self._streams[stream.site] = stream
        if former is not None:
            former.close(f"site {stream.site} connected again")

    def _changed(self, site: Site) -> None:
        """A site that was removed, or has to be approved again, is disconnected at once."""
        error: FedlearnError
        if site.status is SiteStatus.REMOVED:
            error = NotEnrolled(
                f"site {site.name} was removed by the coordinator's operator",
                hint="ask for a new join token, if the site is to come back",
            )
        elif site.status is SiteStatus.PENDING:
            error = TransportError(f"site {site.name} has to be approved again")
        else:
            return
        with self._lock:
            stream = self._streams.get(site.name)
        if stream is not None:
            stream.fail(error)


def _site(caller: Caller) -> Site:
    if caller.site is None:
        raise TransportError("this service needs a site's certificate")
    return caller.site
