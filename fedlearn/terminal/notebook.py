"""The progress of a job where it is followed: in a notebook, in a terminal, or in a log.

In a notebook the live view of the terminal is one display that is updated in place (IPython's
``display(..., display_id=...)``), so that no widget is needed and the saved notebook holds the last
state.
"""

from __future__ import annotations

import io
import sys
import time
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console

from fedlearn.job import events
from fedlearn.results.history import RunHistory
from fedlearn.results.text import event_text
from fedlearn.terminal.progress import Show, draw, show_for

__all__ = ["NotebookShow", "in_notebook", "show_here"]

_WIDTH: Final = 100
_SECONDS: Final = 0.25
_PAGE: Final = '<pre style="line-height:1.25;font-family:monospace">{code}</pre>'


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = _shell()
    return shell is not None and getattr(shell, "kernel", None) is not None


def show_here(*, metric: str = "") -> Show:
    """Return the output for where this process runs; ``metric`` is the one to show first."""
    return NotebookShow(metric) if in_notebook() else show_for(as_json=False, metric=metric)


class NotebookShow:
    """A display in a notebook, drawn at most four times a second."""

    def __init__(self, metric: str = "") -> None:
        self._history = RunHistory()
        self._metric = metric
        self._lines: list[str] = []
        self._display: Any = None
        self._drawn = 0.0

    def __enter__(self) -> Self:
        from IPython.display import display

        self._display = display(self, display_id=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.update(self)

    def show(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Draw the state after ``event``; lines that must stay visible are below it."""
        self._history.add(event, unix_ms=unix_ms)
        lasting = events.ClientRefused | events.ClientQuarantined | events.Log
        if isinstance(event, lasting | events.UpdateRejected):
            self._lines = [*self._lines[-19:], event_text(event, self._metric)]
        if time.monotonic() - self._drawn > _SECONDS:
            self._display.update(self)
            self._drawn = time.monotonic()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """Return the view as HTML and as text, as IPython asks for it."""
        console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False)
        console.print(draw(self._history, self._metric))
        for line in self._lines:
            console.print(line, markup=False, highlight=False)
        html = console.export_html(inline_styles=True, code_format=_PAGE, clear=False)
        return {"text/html": html, "text/plain": console.export_text()}


def _shell() -> Any:
    """Return IPython's shell, without importing IPython."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()
