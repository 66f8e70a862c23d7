"""Processes for user code, which cannot access what was not given to them.

:func:`spawn` starts a program in a :class:`Sandbox`: without capabilities, in namespaces of its own
where the kernel permits them, with Landlock and seccomp where it has them, under another user where
the caller is root, with bounded memory, processes, files and disk. :class:`SandboxReport` states
which protections are in force; none is left out silently. Linux only.

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
