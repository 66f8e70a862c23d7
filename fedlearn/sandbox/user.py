"""Another user for a sandbox: whether it can read what it needs, and its files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["become", "give", "hidden"]

_LOOKED_AT: Final = 10_000


def hidden(
    user: int, *, readable: Iterable[Path], wholly: Iterable[Path], reachable: Iterable[Path]
) -> str:
    """Return a path that ``user`` could not use; empty when there is none.

    For a process that may change its user; the user is the same afterwards.

    :param readable: paths that must be readable; those that do not exist are left out.
    :param wholly: paths that must be readable with their content, up to 10,000 files.
    :param reachable: paths whose parent folders must be accessible.
    """
    itself = [path for path in readable if path.exists()]
    whole = [path for path in wholly if path.exists()]
    ours, group, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
    try:
        for path in (*itself, *whole):
            if found := _unreadable(path, deep=path in whole):
                return found
        for path in reachable:
            try:
                path.stat()
            except PermissionError:
                return str(path)
        return ""
    finally:
        os.seteuid(ours)
        os.setegid(group)
        os.setgroups(groups)


def give(folder: Path, user: int) -> None:
    """Change the owner of a folder and its content to ``user``, except of hard-linked files."""
    os.lchown(folder, user, user)
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            found = path.lstat()
            if found.st_uid != user and (name in folders or found.st_nlink == 1):
                os.lchown(path, user, user)


def become(user: int) -> None:
    """Change to ``user`` permanently, with no other group."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _unreadable(path: Path, *, deep: bool) -> str:
    """Return what the effective user cannot read of ``path``; of many files, the first ones."""

    def readable(each: Path) -> bool:
        try:
            mode = os.R_OK | os.X_OK if each.is_dir() else os.R_OK
        except PermissionError:
            return False
        return os.access(each, mode, effective_ids=True)

    if not readable(path):
        return str(path)
    if not deep:
        return ""
    seen = 0
    for where, folders, files in os.walk(path):
        # Compiled modules that cannot be read are compiled again.
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *files):
            each = Path(where, name)
            if os.path.lexists(each) and not each.is_symlink() and not readable(each):
                return str(each)
            seen += 1
            if seen > _LOOKED_AT:
                return ""
    return ""
