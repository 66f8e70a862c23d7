"""What the charts' pods run, run here: real commands, a real coordinator, real sockets."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.charts import Helm, Render
from tests.harness.cluster import reserve_port

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "helm/fedlearn-server/files"
EDGE = ROOT / "helm/fedlearn-edge/files"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

CONFIG = """\
state = "{state}"
trust_domain = "chart.example"
[listen]
gate = "127.0.0.1:0"
control = "127.0.0.1:0"
fleet = "127.0.0.1:0"
[keys]
protect = ["passphrase"]
passphrase_file = "{folder}/passphrase"
[attester]
kind = "insecure-sample"
key = "{folder}/sample.key"
[metrics]
listen = "127.0.0.1:{port}"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Stand-ins for the volumes of the coordinator's pod."""
    port = reserve_port()
    (tmp_path / "port").write_text(str(port))
    for name in ("disk", "memory", "etc"):
        (tmp_path / name).mkdir()
    etc = tmp_path / "etc"
    (etc / "passphrase").write_text("correct horse battery staple\n")
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-out", str(etc / "sample.key")],
        check=True,
        capture_output=True,
    )  # fmt: skip
    for file, state in (("init.toml", "memory/new"), ("server.toml", "disk/state")):
        (etc / file).write_text(CONFIG.format(state=tmp_path / state, folder=etc, port=port))
    return tmp_path


def _control_on_a_known_port(place: Path) -> None:
    """Give control the port that was reserved for the metrics, which are off then."""
    control = f'control = "127.0.0.1:{(place / "port").read_text()}"'
    for name in ("init.toml", "server.toml"):
        file = place / "etc" / name
        kept = file.read_text().partition("[metrics]")[0]
        file.write_text(kept.replace('control = "127.0.0.1:0"', control))


def _initialize(place: Path, path: str = PATH) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": path,
        "HOME": str(place / "memory"),
        "FEDLEARN_DISK": str(place / "disk"),
        "RUNTIME_DIRECTORY": str(place / "memory"),
        "FEDLEARN_CONFIG": str(place / "etc"),
    }
    return subprocess.run(
        ["fedlearn-server", "establish"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@contextmanager
def _coordinator(place: Path) -> Iterator[dict[str, str]]:
    process = subprocess.Popen(
        ["fedlearn-server", "run", "--config", str(place / "etc/server.toml"), "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PATH": PATH, "RUNTIME_DIRECTORY": str(place / "memory")},
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.e2e
def test_first_start_keeps_the_login_in_memory_and_the_rest_sealed(place: Path) -> None:
    done = _initialize(place)
    assert done.returncode == 0, done.stderr
    login, state = place / "memory/operator", place / "disk/state"
    assert (login / "operator.key").is_file()
    assert not (place / "memory/new").exists()
    kept = [path for path in state.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        assert b"PRIVATE KEY" not in path.read_bytes(), path
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not (state / "operator").exists()

    # The next start changes nothing, but for what a volume's group was given.
    (state / "ca.pem").chmod(0o660)
    before = (state / "ca.pem").read_bytes()
    assert _initialize(place).returncode == 0
    assert stat.S_IMODE((state / "ca.pem").stat().st_mode) == 0o600
    assert (state / "ca.pem").read_bytes() == before

    with _coordinator(place) as received:
        assert (place / "memory/run").is_dir()
        assert not (state / "run").exists()
        done = _check(received)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "uses TLSv1.3" in done.stdout
        assert done.stdout.count("refuses a client without a certificate") == 2

        port = (place / "port").read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            counts = answer.read().decode()
        assert "\nfedlearn_ledger_entries 2\n" in counts
        assert '\nfedlearn_sites{status="active"} 0\n' in counts
        assert '\nfedlearn_jobs{status="running"} 0\n' in counts


@pytest.mark.e2e
def test_a_first_start_answers_a_request_and_never_has_the_operators_key(place: Path) -> None:
    request = ["fedlearn", "operator", "request", "alice", "--operator", str(place / "alice")]
    environment = {**os.environ, "PATH": PATH}
    subprocess.run(request, check=True, capture_output=True, env=environment)
    shutil.copy(place / "alice/operator.csr", place / "etc/operator.csr")
    _control_on_a_known_port(place)
    done = _initialize(place)
    assert done.returncode == 0, done.stderr
    answer = place / "operator.toml"
    answer.write_text(done.stdout)
    assert not (place / "memory/operator").exists()
    for volume in ("disk", "memory"):
        for path in (place / volume).rglob("*"):
            assert not path.is_file() or b"PRIVATE KEY" not in path.read_bytes(), path
    # The answer is there at every start, and is all that there is to read.
    assert _initialize(place).stdout == done.stdout
    login = ["fedlearn", "operator", "login", str(answer), "--operator", str(place / "alice")]
    asked = subprocess.run(login, check=False, capture_output=True, text=True, env=environment)
    assert asked.returncode == 1
    pin = asked.stderr.rpartition("--ca-pin ")[2].strip()
    login += ["--ca-pin", pin]
    subprocess.run(login, check=True, capture_output=True, env=environment)
    with _coordinator(place):
        listed = ["fedlearn", "site", "list", "--json", "--operator", str(place / "alice")]
        reported = subprocess.run(listed, check=True, capture_output=True, env=environment)
        assert json.loads(reported.stdout)["sites"] == []


@pytest.mark.e2e
def test_a_first_start_refuses_a_request_that_is_none(place: Path) -> None:
    (place / "etc/operator.csr").write_text("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n")
    done = _initialize(place)
    assert done.returncode != 0
    assert "not a certification request" in done.stderr
    assert not any((place / "disk").iterdir())
    assert not (place / "memory/operator").exists()


@pytest.mark.e2e
def test_a_first_start_that_was_cut_off_begins_again(place: Path, tmp_path: Path) -> None:
    """Killed after the keys were made and before they reached the disk."""
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "cp").write_text("#!/bin/sh\nexit 9\n")
    (broken / "cp").chmod(0o755)
    assert _initialize(place, f"{broken}:{PATH}").returncode == 9
    assert not (place / "disk/state").exists()
    done = _initialize(place)
    assert done.returncode == 0, done.stderr
    assert (place / "disk/state/keys").is_dir()
    assert (place / "memory/operator/operator.key").is_file()


@pytest.mark.e2e
def test_a_first_start_without_its_passphrase_leaves_nothing(place: Path) -> None:
    (place / "etc/passphrase").unlink()
    done = _initialize(place)
    assert done.returncode != 0
    assert "passphrase" in done.stderr
    assert not any((place / "disk").iterdir())


def _check(received: dict[str, str]) -> subprocess.CompletedProcess[str]:
    ports = [received[name].rpartition(":")[2] for name in ("gate", "control", "fleet")]
    return subprocess.run(
        [sys.executable, str(SERVER / "check.py"), "127.0.0.1", *ports],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def _impostor(folder: Path, name: str) -> Iterator[str]:
    """A TLS server that lets everybody in, as a terminating proxy would."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", str(folder / "key"), "-out", str(folder / "crt"), "-days", "1",
         "-subj", "/CN=proxy", "-addext", f"subjectAltName=DNS:{name}"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = server.accept()
                with context.wrap_socket(plain, server_side=True) as secure:
                    secure.recv(64)
                    secure.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            except ssl.SSLError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def test_helm_test_finds_a_proxy_that_ends_tls(tmp_path: Path) -> None:
    with _impostor(tmp_path, "proxy.example") as address:
        done = _check(dict.fromkeys(("gate", "control", "fleet"), address))
    assert done.returncode == 1
    assert "is not a coordinator, or TLS ends before it" in done.stderr


def test_helm_test_finds_a_listener_that_asks_for_no_certificate(tmp_path: Path) -> None:
    with _impostor(tmp_path, "coordinator.fedlearn.internal") as address:
        done = _check(dict.fromkeys(("gate", "control", "fleet"), address))
    assert done.returncode == 1
    assert "answers a client that has no certificate" in done.stderr


def test_helm_test_states_who_is_not_there() -> None:
    address = f"127.0.0.1:{reserve_port()}"
    done = _check(dict.fromkeys(("gate", "control", "fleet"), address))
    assert done.returncode == 1
    assert done.stderr.startswith(f"gate: no TLS server at {address}")


def test_helm_test_of_a_site_needs_a_tls_server(tmp_path: Path) -> None:
    def check(address: str) -> subprocess.CompletedProcess[str]:
        host, _, port = address.rpartition(":")
        return subprocess.run(
            [sys.executable, str(EDGE / "check.py"), host, port],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    with _impostor(tmp_path, "agent") as address:
        assert check(address).returncode == 0
    closed = check(address)
    assert closed.returncode == 1
    assert "no TLS server" in closed.stderr


# --- the site -----------------------------------------------------------------------------


def _enroll(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(EDGE / "enroll.sh")],
        check=False,
        capture_output=True,
        text=True,
        env={
            "PATH": PATH,
            "HOME": str(place),
            "FEDLEARN_DISK": str(place / "site"),
            "FEDLEARN_TOKEN": str(place / "etc/token"),
        },
        timeout=120,
    )


@pytest.mark.e2e
def test_a_site_enrolls_once_and_then_needs_no_token(place: Path, helm: Helm) -> None:
    assert _initialize(place).returncode == 0
    token = place / "etc/token"
    (place / "site").mkdir()
    done = _enroll(place)
    assert done.returncode == 1
    assert "--set-file enrollment.token=token.txt" in done.stderr

    with _coordinator(place) as received:
        login = place / "memory/operator"
        settings = login / "coordinator.toml"
        settings.write_text(f'address = "{received["control"]}"\n')
        printed = subprocess.run(
            ["fedlearn", "site", "token", "ward", "--operator", str(login), "--json"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": PATH},
        )
        reported_of = json.loads(printed.stdout)
        token.write_text(reported_of["token"])
        _check_install_line(helm, reported_of["helm"], place)
        done = _enroll(place)
        assert done.returncode == 0, done.stderr
        assert "site ward waits for approval" in done.stdout + done.stderr
        state = place / "site/state"
        key = (state / "site.key").read_bytes()

        # Another agent with the same token is refused, and leaves nothing behind.
        other = place / "other"
        shutil.copytree(place / "etc", other / "etc")
        (other / "site").mkdir()
        done = _enroll(other)
        assert done.returncode != 0
        assert not (other / "site/state").exists()

        # The same token again asks nobody; a new one brings a removed site back.
        done = _enroll(place)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        as_operator = ("--operator", str(login), "--json")
        again = ("reject", "ward"), ("token", "ward")
        for words in again:
            printed = subprocess.run(
                ["fedlearn", "site", *words, *as_operator],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "PATH": PATH},
            )
        token.write_text(json.loads(printed.stdout)["token"] + "\n")
        done = _enroll(place)
        assert done.returncode == 0, done.stderr
        assert "site ward waits for approval" in done.stdout + done.stderr
        assert (state / "token").read_text() == token.read_text().strip()

    # The coordinator is away and the token is gone: the next start does not mind.
    token.unlink()
    (state / "site.key").chmod(0o660)
    done = _enroll(place)
    assert done.returncode == 0, done.stderr
    assert (state / "site.key").read_bytes() == key
    assert stat.S_IMODE((state / "site.key").stat().st_mode) == 0o600


def _check_install_line(helm: Helm, printed: str, place: Path) -> None:
    """What is printed for the site's owner is what the chart takes, but for the digests, which a
    release writes into the values (tools/image_digests.py --stamp)."""
    (place / "token.txt").write_text((place / "etc/token").read_text())
    (place / "helm").symlink_to(ROOT / "helm")
    program, *words = shlex.split(printed)
    assert program == "helm"
    digest = "sha256:" + "ab" * 32
    words += ["--set", f"image.digest={digest}", "--set", f"client.image.digest={digest}"]
    done = subprocess.run(
        [str(helm.program), *words, "--dry-run=client"],
        check=False,
        capture_output=True,
        text=True,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert (place / "etc/token").read_text() in done.stdout


def test_the_script_for_clusters_with_tees_states_what_it_needs(helm: Helm, tmp_path: Path) -> None:
    script = ROOT / "tools/e2e-coco.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    environment = {"PATH": f"{helm.program.parent}:{PATH}", "HOME": str(tmp_path)}
    reported = []
    for name in ("KUBECONFIG", "SERVER_VALUES", "EDGE_VALUES", "JOB"):
        done = subprocess.run(
            [str(script)], check=False, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 1
        reported.append(done.stderr.splitlines()[0])
        (tmp_path / name).touch()
        environment[name] = str(tmp_path / name)
    assert reported == [
        f"FAIL  {name} is not set" for name in ("KUBECONFIG", "SERVER_VALUES", "EDGE_VALUES", "JOB")
    ]


def test_scripts_in_pods_are_those_in_the_charts(render: Render) -> None:
    data = render("fedlearn-server", {"backup": {"enabled": True}}).all("ConfigMap")
    files = {name: text for one in data for name, text in one["data"].items()}
    # What makes the keys is in the image: a ConfigMap is the control plane's.
    assert not [name for name in files if name.endswith(".sh")]
    for name in ("check.py", "snapshot.py"):
        assert files[name].strip() == (SERVER / name).read_text().strip()
    data = render("fedlearn-edge").all("ConfigMap")
    files = {name: text for one in data for name, text in one["data"].items()}
    for name in ("enroll.sh", "check.py", "remove_clients.py"):
        assert files[name].strip() == (EDGE / name).read_text().strip()
