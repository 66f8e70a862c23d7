"""The machine: versions, clock, memory, disk, limits and temporary files."""

from __future__ import annotations

import base64
import csv
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedlearn import __version__
from fedlearn.checks import Check, fail, ok, warn
from fedlearn.extras import extra_of, install
from fedlearn.sandbox import Protection, SandboxError, SandboxReport, report

__all__ = [
    "clock",
    "core_dumps",
    "disk",
    "file_mask",
    "installation",
    "memory",
    "open_files",
    "packages",
    "python",
    "sandbox",
    "shadowing",
    "swap",
    "temporary",
]

_GIB: Final = 1024**3
_PACKAGES: Final = ("attestation", "edge", "fedlearn", "server")
_CHECKED: Final = (
    "cryptography",
    "dcap-qvl",
    "flwr",
    "grpcio",
    "numpy",
    "protobuf",
    "uvicorn",
    "kubernetes",
    "torch",
)
_TIME_ERROR: Final = 5
_TIMEX_BYTES: Final = 512
_SKEW_S: Final = 300


def python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """Check the version of Python."""
    shown = ".".join(map(str, version))
    if version < (3, 11):
        return fail("python", f"{shown}, which is too old", "use Python 3.11 or later")
    return ok("python", shown)


def packages() -> Iterator[Check]:
    """Check that the libraries are installed, in versions that this release supports.

    A library of an extra may be missing; the check names the extra.
    """
    try:
        required = importlib.metadata.requires("fedlearn") or []
    except importlib.metadata.PackageNotFoundError:
        yield fail("fedlearn", "is not installed", "pip install fedlearn")
        return
    ranges: dict[str, str] = {}
    for line in required:
        found = re.match(r"([A-Za-z0-9._-]+)\s*([^;]*)", line)
        if found:
            ranges.setdefault(found[1].lower(), found[2].strip())
    for name in _CHECKED:
        wanted = ranges.get(name, "")
        mend = f"pip install '{name}{wanted}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if extra := extra_of(name):
                yield ok(name, f"not installed; {install(extra)} installs it")
            else:
                yield fail(name, "is not installed", mend)
            continue
        if fits(version, wanted):
            yield ok(name, version)
        else:
            yield fail(name, f"{version}; this release needs {wanted}", mend)


def fits(version: str, wanted: str) -> bool:
    """Return whether ``version`` is in a range such as ``>=1.2,<2`` (numbers only)."""
    have = _numbers(version)
    for part in filter(None, (item.strip() for item in wanted.split(","))):
        found = re.fullmatch(r"(>=|<=|==|!=|<|>|~=)\s*([0-9.]+)(?:\.\*)?", part)
        if found is None:
            return False
        bound = _numbers(found[2])
        size = max(len(have), len(bound))
        left, right = (item + (0,) * (size - len(item)) for item in (have, bound))
        same_start = have[: len(bound) - 1] == bound[:-1]
        good = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            ">": left > right,
            "~=": left >= right and same_start,
        }
        if not good[found[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, found[0].split("."))) if found else (0,)


def shadowing(folder: Path | None = None) -> Check:
    """Check that the four packages come from one place, and that no local file shadows them."""
    parents = set()
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return fail("packages", f"{name} cannot be imported", "reinstall fedlearn")
        parents.add(Path(spec.origin).parent.parent)
    if len(parents) > 1:
        places = ", ".join(sorted(map(str, parents)))
        mend = "a file or folder has the name of a package of fedlearn; start in another folder"
        return fail("packages", f"come from different places: {places}", mend)
    here = folder or Path.cwd()
    if here not in parents:
        for name in _PACKAGES:
            for path in (here / f"{name}.py", here / name / "__init__.py"):
                if path.exists():
                    return warn(
                        "packages", f"{path} has the name of a package of fedlearn", "rename it"
                    )
    return ok("packages", f"from {parents.pop()}")


def installation() -> Check:
    """Check that the files of the packages are exactly those of one wheel.

    A wheel lists each file with its SHA-256 (Python Packaging User Guide, "Recording installed
    projects"). Another distribution with a package ``server`` would write into the same folder.
    """
    try:
        distribution = importlib.metadata.distribution("fedlearn")
    except importlib.metadata.PackageNotFoundError:
        return fail("installation", "fedlearn is not installed", "pip install fedlearn")
    # With the package importlib_metadata loaded, `Distribution.files` has no missing files.
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    listed = {
        name: digest.removeprefix("sha256=")
        for name, digest, _ in rows
        if name.split("/")[0] in _PACKAGES and digest and not name.endswith(".pyc")
    }
    if not listed:
        return ok("installation", f"{__version__}, a source tree")
    root = Path(str(distribution.locate_file("")))
    mend = f"pip install --force-reinstall --no-deps fedlearn=={distribution.version}"
    if distribution.version != __version__:
        found = f"the code is {__version__}, and the installed distribution {distribution.version}"
        return fail("installation", found, mend)
    present = {
        str(path.relative_to(root))
        for package in _PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    altered = sorted(
        name
        for name, recorded in listed.items()
        if name in present and _digest(root / name) != recorded
    )
    for what, names in (
        ("are missing", sorted(listed.keys() - present)),
        ("do not belong to it", sorted(present - listed.keys())),
        ("were altered", altered),
    ):
        if names:
            shown = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
            return fail("installation", f"{__version__}, of whose files {what}: {shown}", mend)
    return ok("installation", f"{__version__}, {len(listed)} files as they were installed")


def _digest(path: Path) -> str:
    """Return a file's SHA-256 as RECORD has it: base64url without padding."""
    return (
        base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
    )


def clock(now: datetime | None = None, synchronised: bool | None = None) -> Check:
    """Check the clock, as far as this machine can know.

    Evidence and certificates are valid for minutes; with a wrong clock all are refused.
    """
    moment = now or datetime.now(UTC)
    newest = _newest_file_time()
    shown = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    mend = "synchronise the clock: systemctl enable --now systemd-timesyncd (or chrony)"
    if moment.timestamp() + _SKEW_S < newest:
        built = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M")
        return fail("clock", f"{shown}, before this software was installed ({built})", mend)
    kept = _kernel_is_synchronised() if synchronised is None else synchronised
    if kept is None:
        return warn("clock", f"{shown}; whether it is synchronised cannot be known here", mend)
    if not kept:
        return warn("clock", f"{shown}; not synchronised with any time source", mend)
    return ok("clock", f"{shown}, synchronised")


def _newest_file_time() -> float:
    folder = Path(__file__).parent
    now = time.time()
    # A source tree may contain files of this second; a time in the future is not used.
    times = (path.stat().st_mtime for path in folder.parent.glob("*.py"))
    return max((moment for moment in times if moment <= now + 86_400), default=0.0)


def _kernel_is_synchronised() -> bool | None:
    """Ask adjtimex(2), which needs no privilege if it changes nothing."""
    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    # struct timex starts with `modes`; zero sets nothing.
    state = call(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else bool(state != _TIME_ERROR)


def disk(path: Path, *, what: str = "disk", need_gib: float = 1.0) -> Check:
    """Check the free disk space for the state."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    shown = f"{free:.1f} GiB free at {place}"
    if free < need_gib:
        return fail(what, shown, f"free at least {need_gib:g} GiB, or name another place")
    if free < 5 * need_gib:
        return warn(what, shown, "sealed checkpoints take about two models for each job")
    return ok(what, shown)


def memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Check the free memory for a coordinator or a client."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    except OSError:
        found = None
    if found is None:
        return warn("memory", "cannot be known here", "check it by hand: 2 GiB should be free")
    free = int(found[1]) / 1024**2
    shown = f"{free:.1f} GiB available"
    if free < 0.5:
        return fail("memory", shown, "stop other programs or take a larger machine")
    if free < 2:
        return warn("memory", shown, "a client with torch takes about 0.5 GiB")
    return ok("memory", shown)


def swap(swaps: Path = Path("/proc/swaps")) -> Check:
    """Check that the kernel does not write keys and weights to disk (swap)."""
    try:
        areas = [line.split()[0] for line in swaps.read_text().splitlines()[1:] if line.strip()]
    except OSError:
        areas = []
    disks = [area for area in areas if not area.startswith("/dev/zram")]
    if disks:
        mend = "swapoff -a, or encrypt the swap with a key that is lost at power-off"
        return warn("swap", f"keys in memory may reach {', '.join(disks)}", mend)
    return ok("swap", "none on disk")


def core_dumps() -> Check:
    """Check that a crash does not write memory, and with it keys, to disk."""
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    if soft != 0:
        size = "unlimited" if soft == resource.RLIM_INFINITY else f"up to {soft} bytes"
        found = f"a crash writes memory to disk ({size})"
        return warn("core dumps", found, "ulimit -c 0, or LimitCORE=0 in the unit")
    return ok("core dumps", "off")


def file_mask() -> Check:
    """Check that other users cannot access new files (umask)."""
    mask = os.umask(0o077)
    os.umask(mask)
    if not mask & 0o002:
        return warn("umask", f"{mask:03o}: anybody can change new files", "umask 027 or 077")
    return ok("umask", f"{mask:03o}")


def open_files() -> Check:
    """Check that there are enough descriptors for many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mend = f"ulimit -n 4096 (the hard limit is {hard}), or LimitNOFILE=4096 in the unit"
    if soft == resource.RLIM_INFINITY or soft >= 1024:
        return ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft}")
    if soft < 256:
        return fail("open files", f"at most {soft}", mend)
    return warn("open files", f"at most {soft}", mend)


def sandbox(find: Callable[[], SandboxReport] = report) -> Check:
    """Check which protections a sandbox for user code has here."""
    try:
        found = find()
    except SandboxError as error:
        return fail("sandbox", str(error), "run as another user, or on another machine")
    if Protection.LANDLOCK not in found.applied and Protection.FILES not in found.applied:
        mend = "use Linux 5.13 or later with lsm=landlock, or let containers make namespaces"
        return fail("sandbox", f"user code could read other files; {found}", mend)
    if not found.full:
        return warn(
            "sandbox",
            str(found),
            "the sandbox works without the missing protections; see the reasons",
        )
    return ok("sandbox", str(found))


def temporary() -> Check:
    """Check that temporary files can be written."""
    try:
        place = tempfile.gettempdir()
        with tempfile.TemporaryFile() as file:
            file.write(b"fedlearn")
    except OSError as error:
        return fail("temporary files", str(error), "set TMPDIR to a folder that can be written")
    return ok("temporary files", f"in {place}")
