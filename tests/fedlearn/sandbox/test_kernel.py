"""A sandboxed program has no network, no capability and no way into the kernel."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import pytest

from fedlearn.sandbox import (
    Protection,
    seccomp,
)
from tests.harness.sandbox import (
    NEEDS_SANDBOX,
    TRY,
    Run,
    attack,
    lines,
)

pytestmark = NEEDS_SANDBOX


@pytest.mark.parametrize(
    "family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"]
)
def test_no_socket_but_unix(run: Run, family: str) -> None:
    code = "attempt(socket.socket, getattr(socket, sys.argv[1]), socket.SOCK_RAW)"
    assert attack(run, code, family) == ["refused EACCES"]


def test_an_abstract_socket_of_others_is_out_of_reach(run: Run) -> None:
    name = f"\0fedlearn-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        code = 'attempt(lambda: socket.socket(socket.AF_UNIX).connect("\\0" + sys.argv[1]))'
        (line,) = attack(run, code, name[1:])
    assert line.startswith("refused")


def test_a_socket_of_others_in_a_folder_is_out_of_reach(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        ran = run(TRY + "attempt(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1]))", path)
    # Landlock does not look at connect(): without a file system of its own, file modes decide.
    if Protection.FILES in ran.applied:
        assert lines(ran)[0].startswith("refused")


def test_calls_that_reach_the_kernel_are_refused(run: Run) -> None:
    numbers = seccomp.DENIED[os.uname().machine]
    names = ("bpf", "io_uring_setup", "keyctl", "mount", "perf_event_open", "setns", "userfaultfd")
    code = "for number in sys.argv[1:]: attempt(call, int(number), 0, 0, 0, 0, 0)"
    found = attack(run, code, *(numbers[name] for name in names))
    assert found == ["refused EPERM"] * len(names)


def test_no_namespace_is_made_inside(run: Run) -> None:
    found = attack(
        run,
        """
        attempt(call, {"x86_64": 272, "aarch64": 97}[os.uname().machine], 0x10000000)
        attempt(call, {"x86_64": 56, "aarch64": 220}[os.uname().machine], 0x10000011, 0, 0, 0, 0)
        attempt(call, 435, 0, 0)
        """,
    )
    assert found == ["refused EPERM", "refused EPERM", "refused ENOSYS"]


def test_no_capability_is_left(run: Run) -> None:
    ran = run("print(open('/proc/self/status').read())")
    found = dict(line.split(":\t") for line in lines(ran) if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_files_and_environment_of_the_parent_do_not_come_along(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_SECRET", "x")
    with Path("/etc/hostname").open() as kept:
        os.set_inheritable(kept.fileno(), True)
        found = attack(
            run,
            """
            print(sorted(os.environ))
            opened = [n for n in range(256) if os.path.exists(f"/proc/self/fd/{n}")]
            print(opened)
            """,
            env={"GIVEN": "1", "LC_CTYPE": "C.UTF-8"},
        )
    assert found[0] == "['GIVEN', 'LC_CTYPE', 'TMPDIR']"
    assert found[1] == "[0, 1, 2]"
