"""Another user for a sandbox: whether it can read what it needs, and how it comes to its files."""

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

    For a process that may change its user; it is the same one afterwards.

    :param readable: are looked at themselves; those that do not exist are left out.
    :param wholly: are looked at with what is in them, up to 10,000 files.
    :param reachable: need not be readable, only the way to them.
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
    """Give a folder and what is in it to ``user``; a file with a second name stays as it is."""
    os.lchown(folder, user, user)
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            found = path.lstat()
            if found.st_uid != user and (name in folders or found.st_nlink == 1):
                os.lchown(path, user, user)


def become(user: int) -> None:
    """Change to ``user``, for ever, with no other group."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _unreadable(path: Path, *, deep: bool) -> str:
    """Return what of ``path`` the effective user cannot read; of many files, the first ones."""

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
        # Compiled modules that cannot be read are compiled again; ours are often private.
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *files):
            each = Path(where, name)
            if os.path.lexists(each) and not each.is_symlink() and not readable(each):
                return str(each)
            seen += 1
            if seen > _LOOKED_AT:
                return ""
    return ""
