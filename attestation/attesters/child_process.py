"""Commands that end with the process that starts them, however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["until_input_closes"]

# A parent-death signal (prctl(2)) would be sent when the starting thread ends.
_SCRIPT: Final = """
exec 3<&0
"$@" </dev/null 3<&- & child=$!
(cat <&3 >/dev/null; kill $child) 2>/dev/null & watch=$!
exec 3<&-
wait $child
status=$?
kill $watch 2>/dev/null
exit $status
"""


def until_input_closes(name: str, command: Sequence[str]) -> list[str]:
    """Return a command that runs ``command`` and ends it (SIGTERM) when its input closes.

    Started with a pipe as its standard input, it ends when the pipe is closed or its owner is
    gone, SIGKILL included. Its exit status is that of ``command``; ``name`` is what ps(1) shows.
    """
    return ["/bin/sh", "-c", _SCRIPT, name, *command]
