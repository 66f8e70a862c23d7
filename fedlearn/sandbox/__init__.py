"""Processes that run user code, kept from everything that is not theirs.

:func:`spawn` starts a program in a :class:`Sandbox`: without capabilities, in namespaces of its own
where the kernel lets us, with Landlock and seccomp where it has them, under another user where
we are root, with bounded memory, processes, files and disk. :class:`SandboxReport` says what of
that is in force; nothing is left out silently. Linux only.

The page is docs/adr/0018-sandbox.md.
"""

from __future__ import annotations

from fedlearn.sandbox.spawn import (
    SandboxedProcess,
    free_user,
    protect_this_process,
    report,
    spawn,
    thread_environment,
)
from fedlearn.sandbox.spec import FULL, Protection, Sandbox, SandboxError, SandboxReport

__all__ = [
    "FULL",
    "Protection",
    "Sandbox",
    "SandboxError",
    "SandboxReport",
    "SandboxedProcess",
    "free_user",
    "protect_this_process",
    "report",
    "spawn",
    "thread_environment",
]
