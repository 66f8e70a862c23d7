"""The namespaces that a real node lives in: network, mounts and processes of its own.

The node's programs are the children of one keeper in a PID namespace. When the keeper dies, and
it dies with the thread that started it, the kernel kills everything in there and drops what it
mounted: containers, shims, volumes and the network with its end of the link. So nothing of it
stays, however a test ends. What the kernel does not drop, empty cgroups and one folder below
``/tmp``, :meth:`Host.stop` removes, and the next :meth:`Host.start` where that was not called.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from tests.harness.started import Started

PREFIX: Final = "fedlearn-node-"
NAMES: Final = "10.96.0.10"
"""Where names are asked for inside; see :mod:`real_node_services`."""
_NUMBERS: Final = range(1, 200)
_STOP_SECONDS: Final = 20.0
_PROGRAMS: Final = ("unshare", "nsenter", "setpriv", "ip", "mount")
# The kubelet sets these for the whole machine. It gets files that already have these values.
_TUNABLES: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_INSIDE: Final = """
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$1/lib" /var/lib
mount --bind "$1/log" /var/log
mkdir /run/lock /run/netns
mount --bind "$1/resolv.conf" /etc/resolv.conf
cd "$1/tunables"
for file in */* */*/*; do
  [ ! -f "$file" ] || [ ! -e "/proc/sys/$file" ] || mount --bind "$file" "/proc/sys/$file"
done
ip link set lo up
ip addr add "$2/30" dev uplink
ip link set uplink up
ip route add default via "$3"
echo 1 >/proc/sys/net/ipv4/ip_forward
"""


class Host(Started):
    """Namespaces for one node; a context manager. Needs root.

    ``address``   the node's, as this machine reaches it
    ``outside``   this machine's, as the node and its pods reach it
    ``pods``      network of the pods, which this machine reaches too
    ``cgroup``    below which all of the node's cgroups are
    ``folder``    the node's files, in the same place inside and outside
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        self.cgroup = self.folder.name
        self.address = self.outside = self.pods = ""
        self._link = ""
        self._keeper: subprocess.Popen[str] | None = None
        self._first = 0

    def start(self) -> Self:
        """Make the namespaces and the link.

        :raises RuntimeError: in one line, when this machine does not allow it.
        """
        if os.geteuid() != 0:
            raise RuntimeError("a real node needs root: it makes namespaces, mounts and cgroups")
        if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
            raise RuntimeError(
                f"a real node needs {', '.join(missing)}: tools/install-system-packages.sh pods"
            )
        _sweep()
        for name in ("lib", "log", "logs", "tunables"):
            (self.folder / name).mkdir()
        (self.folder / "resolv.conf").write_text(f"nameserver {NAMES}\n")
        for name, value in _TUNABLES.items():
            path = self.folder / "tunables" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        self._unshare()
        self._connect()
        self.run("sh", "-euc", _INSIDE, "sh", str(self.folder), self.address, self.outside)
        for controller in _controllers():
            (controller / self.cgroup).mkdir()
            _share_cpus(controller / self.cgroup)
        return self

    def kill(self) -> None:
        """Kill all that is inside."""
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
            self._keeper = None

    def stop(self) -> None:
        """Kill what is inside, and remove what is left."""
        self.kill()
        if self._link:
            _run("ip", "link", "del", self._link, check=False)
            self._link = ""
        end = time.monotonic() + _STOP_SECONDS
        while not _remove_cgroups(self.cgroup) and time.monotonic() < end:
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def network(self) -> tuple[str, ...]:
        """Words that put a program of this machine into the node's network only."""
        return ("nsenter", f"--net=/proc/{self._first}/ns/net", "--")

    @property
    def inside(self) -> tuple[str, ...]:
        """Words that put a program into all of the node's namespaces."""
        return ("nsenter", f"--target={self._first}", "--mount", "--net", "--pid", "--")

    def run(self, *words: str, seconds: float = 300.0) -> str:
        """Run a program inside to its end; return what it wrote.

        :raises RuntimeError: with what it wrote, when it fails.
        """
        return _run(*self.inside, *words, seconds=seconds)

    def spawn(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program inside, that ends with the node; it writes ``logs/NAME.log``."""
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.inside, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )

    def log(self, name: str, most: int = 3000) -> str:
        """Return the end of what a program wrote."""
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text(errors="replace")[-most:] if path.exists() else ""

    def processes(self, word: str) -> Iterator[int]:
        """Yield the processes, by their numbers on this machine, whose cgroup has ``word``."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    text = (entry / "cgroup").read_text()
                    if f"/{self.cgroup}/" in text and word in text:
                        yield int(entry.name)

    def _unshare(self) -> None:
        """Start the keeper: PID 1 of its namespace, which leaves no zombies."""
        words = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--net", "--pid"]
        words += ["--fork", "--kill-child=KILL", "--propagation=private", "--mount-proc", "--"]
        words += ["sh", "-c", "echo here; exec env --ignore-signal=CHLD sleep infinity"]
        self._keeper = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        reported = self._keeper.stdout.readline().strip()
        if reported != "here":
            raise RuntimeError(f"this machine makes no namespaces: {reported}")
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children")
        self._first = int(children.read_text().split()[0])

    def _connect(self) -> None:
        for number in _NUMBERS:
            link = f"fedlearn{number}"
            made = _run(
                *("ip", "link", "add", link, "type", "veth", "peer", "name", "uplink"),
                *("netns", str(self._first)),
                check=False,
            )
            if "File exists" in made:
                continue
            if made:
                raise RuntimeError(f"this machine makes no link to a node: {made}")
            self._link = link
            break
        else:
            raise RuntimeError("there are too many nodes here: ip link show type veth")
        self.outside, self.address = f"10.99.{number}.1", f"10.99.{number}.2"
        self.pods = f"10.244.{number}.0/24"
        _run("ip", "addr", "add", f"{self.outside}/30", "dev", link)
        _run("ip", "link", "set", link, "up")
        _run("ip", "route", "add", self.pods, "via", self.address)


def _run(*words: str, check: bool = True, seconds: float = 60.0) -> str:
    """Run a program; return what it wrote, to stderr alone when it may fail."""
    done = subprocess.run(
        words,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout if check else done.stderr.strip()


def _controllers() -> Sequence[Path]:
    """Return where cgroups are mounted: one place for version 2, several for version 1."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(words[1]) for words in mounts if words[2] in ("cgroup", "cgroup2")]


def _share_cpus(cgroup: Path) -> None:
    """A cpuset of version 1 starts empty, and nothing runs in it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (cgroup / name).exists() and (cgroup.parent / name).exists():
            (cgroup / name).write_text((cgroup.parent / name).read_text())


def _remove_cgroups(name: str) -> bool:
    """Remove the cgroups of a node; return whether all are gone."""
    gone = True
    for controller in _controllers():
        top = controller / name
        if not top.exists():
            continue
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                Path(folder).rmdir()
            except OSError:
                _kill_in(Path(folder))
                gone = False
    return gone


def _kill_in(cgroup: Path) -> None:
    with contextlib.suppress(OSError):
        for pid in (cgroup / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)


def _sweep() -> None:
    """Remove cgroups of nodes whose folder's owner was killed: they hold no process."""
    for controller in _controllers():
        for top in controller.glob(f"{PREFIX}*"):
            held = any(path.read_text().split() for path in top.rglob("cgroup.procs"))
            if not held and not Path("/tmp", top.name).exists():
                _remove_cgroups(top.name)
