"""A headless Chromium that tests drive over two descriptors; nothing else is needed for that.

Chromium reads commands from its descriptor 3 and writes answers to 4, each a JSON document that
ends with a NUL (``--remote-debugging-pipe``, https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

__all__ = ["Browser", "browser_program", "open_browser"]

_SECONDS = 60.0


def browser_program() -> str:
    """Return the path of a Chromium, or an empty string."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), "")


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own; it has ended when the context ends."""
    to_browser, our_commands = os.pipe()
    our_answers, from_browser = os.pipe()
    # The shell gives Chromium its two descriptors: what Popen could do only with a preexec_fn.
    process = subprocess.Popen(
        [
            "/bin/bash",
            "-c",
            f'exec "$@" 3<&{to_browser} 4>&{from_browser}',
            "bash",
            browser_program(),
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(our_commands, our_answers)
    finally:
        process.kill()
        process.wait()
        os.close(our_commands)
        os.close(our_answers)


class Browser:
    """One page of a browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._read = commands, answers, b""
        self._number, self._session = 0, ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        found = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        self._call("Page.enable")
        # The page's own policy forbids scripts; the tests' scripts are not the page's.
        self._call("Page.setBypassCSP", enabled=True)

    def load(self, path: Path, *, width: int, scheme: Literal["light", "dark"]) -> None:
        """Show a file at a width in CSS pixels, in a colour scheme."""
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=media)
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._call("Page.navigate", url=path.as_uri())
        self._wait_for("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        found = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(f"the script failed: {found['exceptionDetails']}")
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """Return the whole page as a PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self._call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        return base64.b64decode(found["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _wait_for(self, event: str) -> None:
        while self._receive().get("method") != event:
            pass

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise AssertionError(f"the browser did not answer within {_SECONDS:.0f} s")
            read = os.read(self._answers, 1 << 20)
            if not read:
                raise AssertionError("the browser ended")
            self._read += read
        message, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found
