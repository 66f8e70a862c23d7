"""The attestation agent's REST interface on a loopback port, over quotes of our own."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attestation.logs.eventlog import EventLog
from attestation.logs.runtime_events import RuntimeEvent


@dataclass
class CocoAgent:
    """Serves while it is entered; ``address`` is where.

    ``quote``   makes a quote over report data and the log as it is then
    ``log``     the firmware's log, to which AAEL events are added
    ``aael``    the agent extends a runtime register
    ``answer``  sent in place of evidence, where a test wants another one
    """

    quote: Callable[[bytes, EventLog], bytes]
    log: EventLog
    aael: bool = True
    answer: bytes | None = None
    status: int = 200
    forget: bool = False
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> CocoAgent:
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                text = parse_qs(url.query).get("runtime_data", [""])[0]
                agent.asked.append(text)
                if url.path != "/aa/evidence" or len(text.encode()) > 64:
                    self._send(404 if url.path != "/aa/evidence" else 500, b"")
                    return
                self._send(agent.status, agent.evidence(text))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/aa/aael" or not agent.aael:
                    self._send(404, b"")
                    return
                agent.extend(json.loads(body))
                self._send(200, b"")

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def evidence(self, text: str) -> bytes:
        """Return the agent's answer for TDX."""
        if self.answer is not None:
            return self.answer
        quote = self.quote(text.encode().ljust(64, b"\0"), self.log)
        return json.dumps(
            {
                "cc_eventlog": base64.b64encode(self.log.to_bytes()).decode(),
                "quote": base64.b64encode(quote).decode(),
            }
        ).encode()

    def extend(self, event: dict[str, Any]) -> None:
        """Extend RTMR3 with an AAEL event."""
        import hashlib

        if self.forget:
            return
        data = RuntimeEvent(**event).to_data()
        self.log = self.log.append(4, 6, {"sha384": hashlib.sha384(data).digest()}, data)
