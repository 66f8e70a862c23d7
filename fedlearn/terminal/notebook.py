"""The progress of a job where it is followed: in a notebook, in a terminal, or in a log.

In a notebook the live view of the terminal is one display that is updated in place (IPython's
``display(..., display_id=...)``), so that no widget is needed and the saved notebook holds the last
state.

The page is docs/tutorials/notebook.md.
"""

from __future__ import annotations

import contextvars
import io
import sys
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console

from fedlearn.job import events
from fedlearn.results.history import RunHistory
from fedlearn.results.text import event_text
from fedlearn.terminal.progress import Show, draw, show_for

__all__ = ["NotebookShow", "in_notebook", "picture_figures", "show_here"]

_WIDTH: Final = 100
_SECONDS: Final = 0.5
_LINES: Final = 19
_PAGE: Final = '<pre style="line-height:1.25;font-family:monospace">{code}</pre>'


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = _shell()
    return shell is not None and getattr(shell, "kernel", None) is not None


def show_here(*, metric: str = "") -> Show:
    """Return the output for where this process runs; ``metric`` is the one to show first."""
    return NotebookShow(metric) if in_notebook() else show_for(as_json=False, metric=metric)


def picture_figures() -> None:
    """Have a notebook show a matplotlib figure that a cell returns as a picture.

    It does so by itself only once pyplot is imported. What the user has chosen stays.
    """
    if not in_notebook():
        return
    from IPython.core.pylabtools import select_figure_formats
    from matplotlib.figure import Figure

    shell = _shell()
    try:
        shell.display_formatter.formatters["image/png"].lookup_by_type(Figure)
    except KeyError:
        select_figure_formats(shell, {"png"})


class NotebookShow:
    """A display in a notebook, drawn every half second until its context ends."""

    def __init__(self, metric: str = "") -> None:
        self._history = RunHistory()
        self._metric = metric
        self._received = time.monotonic()
        self._lines: list[str] = []
        self._display: Any = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        from IPython.display import display

        self._display = display(self, display_id=True)
        # In a copy of the context: IPython sends what it shows to the cell that the context names.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._redraw,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._display.update(self)

    def show(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Add ``event`` to what is drawn; lines that must stay visible are below the view."""
        with self._lock:
            self._history.add(event, unix_ms=unix_ms)
            self._received = time.monotonic()
            lasting = events.ClientRefused | events.ClientQuarantined | events.Log
            if isinstance(event, lasting | events.UpdateRejected):
                self._lines = [*self._lines[-_LINES:], event_text(event, self._metric)]

    def _redraw(self) -> None:
        while not self._over.wait(_SECONDS):
            self._display.update(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """Return the view as HTML and as text, as IPython asks for it."""
        console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False)
        with self._lock:
            # By the clock of the events, which may differ from the one here.
            passed = int(1000 * (time.monotonic() - self._received))
            now = self._history.last_unix_ms + passed if self._history.last_unix_ms else 0
            console.print(draw(self._history, self._metric, now_unix_ms=now))
            for line in self._lines:
                console.print(line, markup=False, highlight=False)
        html = console.export_html(inline_styles=True, code_format=_PAGE, clear=False)
        return {"text/html": html, "text/plain": console.export_text()}


def _shell() -> Any:
    """Return IPython's shell, without importing IPython."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()
