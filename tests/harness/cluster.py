"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler.

TLS everywhere, Node and RBAC authorization, nobody anonymous. Several run at once. The
programs are those that ``tools/get-kubernetes.sh`` fetches; they end with this process.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.harness.started import Started

ROOT: Final = Path(__file__).resolve().parents[2]
_READY_SECONDS: Final = 90.0


def assets() -> Path:
    """Return the folder with the programs; fetch them first where they are missing."""
    done = subprocess.run(
        [str(ROOT / "tools/get-kubernetes.sh")],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"no Kubernetes for the tests:\n{done.stderr[-4000:]}")
    return Path(done.stdout.strip())


def tied(command: Sequence[str], sign: str = "TERM") -> list[str]:
    """Return a command whose process gets a signal when the thread that started it is gone."""
    return ["setpriv", "--pdeathsig", sign, "--", *command]


def reserve_port() -> int:
    """Return a free port that the kernel gives to nobody else for a minute.

    A connection that was closed here leaves the port in TIME_WAIT: no ephemeral bind takes
    it, and a server that sets SO_REUSEADDR (as Go's do) still can.
    """
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port: int = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()
    return port


class Authority:
    """The cluster's certificate authority; keys and certificates are files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test cluster")])
        builder = self._builder(name, name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self._write("ca", self._certificate, self._key)
        self.path = folder / "ca.crt"

    def issue(
        self, file: str, name: str, *, groups: tuple[str, ...] = (), addresses: tuple[str, ...] = ()
    ) -> tuple[Path, Path]:
        """Return paths of a certificate and its key; a server's when it has addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        usage = ExtendedKeyUsageOID.SERVER_AUTH if addresses else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = self._builder(subject, self._certificate.subject, key).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if addresses:
            names = [_general_name(address) for address in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        self._write(file, builder.sign(self._key, hashes.SHA256()), key)
        return self._folder / f"{file}.crt", self._folder / f"{file}.key"

    @staticmethod
    def _builder(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=2))
        )

    def _write(
        self, file: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        pem = serialization.Encoding.PEM
        (self._folder / f"{file}.crt").write_bytes(certificate.public_bytes(pem))
        write_private_key(self._folder / f"{file}.key", key)


def write_private_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write ``key`` as PEM, for its owner only."""
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


class Cluster(Started):
    """One control plane below ``folder``; a context manager.

    ``url``    of the API server
    ``admin``  path of a kubeconfig that may do anything

    :param audited: have the API server note who asks for what; see :meth:`asked`.
    :param address: of the API server; one that this machine can reach.
    :param inside: words before each program's own, which put it into another namespace.
    :param features: feature gates to be opened, besides those of all tests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        programs: Path | None = None,
        audited: bool = False,
        address: str = "127.0.0.1",
        inside: Sequence[str] = (),
        features: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self._features = tuple(features)
        self._address, self._inside = address, tuple(inside)
        self._audited = audited
        self._programs = programs or assets()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(folder)
        self._etcd, self._peer, self._secure = (reserve_port() for _ in range(3))
        self.url = f"https://{address}:{self._secure}"
        self.admin = self.kubeconfig("admin", groups=("system:masters",))

    def start(self) -> Self:
        """Start everything; return when a pod could be created."""
        self.authority.issue(
            "apiserver",
            "kube-apiserver",
            addresses=(
                *{"127.0.0.1", self._address},
                *("10.96.0.1", "localhost", "kubernetes.default.svc"),
            ),
        )
        self.authority.issue("kubelet-client", "kubelet-client", groups=("system:masters",))
        accounts = ec.generate_private_key(ec.SECP256R1())
        write_private_key(self.folder / "accounts.key", accounts)
        (self.folder / "accounts.pub").write_bytes(
            accounts.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        self._run_etcd()
        self._run_api_server()
        self.wait_ready()
        self._run_controllers()
        self._run_scheduler()
        self._await("/api/v1/namespaces/default/serviceaccounts/default")
        return self

    def stop(self) -> None:
        """End everything."""
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    # --- what tests do to it ----------------------------------------------------------

    def kill_api_server(self) -> None:
        """Kill the API server; every watch breaks."""
        process = self._running.pop("kube-apiserver")
        process.kill()
        process.wait()

    def restart_api_server(self) -> None:
        """Start a killed API server again, at the same address and with the same state."""
        self._run_api_server()
        self.wait_ready()

    def kubeconfig(
        self, name: str, *, groups: tuple[str, ...] = (), token: str = "", namespace: str = ""
    ) -> Path:
        """Write a kubeconfig for a user's certificate, or for a bearer token."""
        file = name.replace(":", "-")
        if token:
            user: dict[str, str] = {"token": token}
        else:
            certificate, key = self.authority.issue(file, name, groups=groups)
            user = {
                "client-certificate-data": _base64(certificate),
                "client-key-data": _base64(key),
            }
        context = {
            "cluster": "test",
            "user": name,
            **({"namespace": namespace} if namespace else {}),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority-data": _base64(self.authority.path),
                    },
                }
            ],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": context}],
        }
        path = self.folder / f"{file}.kubeconfig"
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        return path

    def request(self, path: str, method: str = "GET", body: object = None) -> Any:
        """Call the API as its administrator; return the answer's JSON.

        :raises urllib.error.HTTPError: for an answer that is a refusal.
        """
        context = ssl.create_default_context(cafile=str(self.authority.path))
        context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": kind},
        )
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            data = answer.read()
        return json.loads(data) if data[:1] in (b"{", b"[") else data.decode()

    def token(self, namespace: str, account: str, *, seconds: int = 3600) -> str:
        """Return a token of a service account, as a projected volume would hold it."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        return str(self.request(path, "POST", body)["status"]["token"])

    def asked(self, user: str) -> list[dict[str, Any]]:
        """Return the audit log's entries of what a user has asked for, one for each request."""
        lines = (self.folder / "audit.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return [
            entry
            for entry in entries
            if entry["user"].get("username") == user and entry["stage"] == "RequestReceived"
        ]

    def log(self, component: str) -> str:
        """Return what a component wrote."""
        return (self.folder / f"{component}.log").read_text(errors="replace")

    def memory_mib(self) -> dict[str, int]:
        """Return the resident memory of each component."""
        found = {}
        for name, process in self._running.items():
            status = Path(f"/proc/{process.pid}/status").read_text()
            line = next(item for item in status.splitlines() if item.startswith("VmRSS"))
            found[name] = int(line.split()[1]) // 1024
        return found

    def wait_ready(self) -> None:
        """Return when the API server reports that it is ready."""
        self.wait(lambda: self.request("/readyz") == "ok", "the API server to be ready")

    def wait(self, reached: Callable[[], bool], what: str, seconds: float = _READY_SECONDS) -> None:
        """Return when ``reached()``; refused connections and 404 count as not yet."""
        deadline = time.monotonic() + seconds
        pause = 0.01
        while time.monotonic() < deadline:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended:\n{self.log(name)[-3000:]}")
            try:
                if reached():
                    return
            except urllib.error.HTTPError as error:
                if error.code not in (403, 404, 500, 503):
                    raise
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        raise TimeoutError(f"waited {seconds} s for {what}")

    # --- the programs -----------------------------------------------------------------

    def _await(self, path: str) -> None:
        self.wait(lambda: bool(self.request(path)), path)

    def _run(self, name: str, *flags: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                tied([*self._inside, str(self._programs / name), *flags]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder)},
            )

    def _run_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd, self._peer))
        self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )

    def _run_api_server(self) -> None:
        file = self.folder.joinpath
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            f"--bind-address={self._address}",
            f"--advertise-address={self._address}",
            f"--secure-port={self._secure}",
            "--insecure-port=0",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={file('apiserver.crt')}",
            f"--tls-private-key-file={file('apiserver.key')}",
            f"--client-ca-file={file('ca.crt')}",
            "--anonymous-auth=false",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            self._gates("TTLAfterFinished", "GenericEphemeralVolume"),
            f"--service-account-key-file={file('accounts.pub')}",
            f"--service-account-signing-key-file={file('accounts.key')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--api-audiences=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--kubelet-client-certificate={file('kubelet-client.crt')}",
            f"--kubelet-client-key={file('kubelet-client.key')}",
            f"--kubelet-certificate-authority={file('ca.crt')}",
            "--kubelet-preferred-address-types=InternalIP",
            *self._audit_flags(),
        )

    def _gates(self, *names: str) -> str:
        opened = ",".join(f"{name}=true" for name in (*names, *self._features))
        return f"--feature-gates={opened}"

    def _audit_flags(self) -> tuple[str, ...]:
        if not self._audited:
            return ()
        policy = self.folder / "audit-policy.json"
        rules = {
            "kind": "Policy",
            "apiVersion": "audit.k8s.io/v1",
            "rules": [{"level": "Metadata"}],
        }
        policy.write_text(json.dumps(rules))
        return (f"--audit-policy-file={policy}", f"--audit-log-path={self.folder / 'audit.log'}")

    def _run_controllers(self) -> None:
        config = self.kubeconfig("system:kube-controller-manager")
        file = self.folder.joinpath
        self._run(
            "kube-controller-manager",
            *self._connection(config),
            f"--service-account-private-key-file={file('accounts.key')}",
            f"--root-ca-file={file('ca.crt')}",
            f"--cluster-signing-cert-file={file('ca.crt')}",
            f"--cluster-signing-key-file={file('ca.key')}",
            "--use-service-account-credentials",
            self._gates("TTLAfterFinished", "GenericEphemeralVolume"),
            # A lost node is noticed in seconds, so that tests can lose one.
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=6s",
            f"--cert-dir={file('controllers')}",
        )

    def _run_scheduler(self) -> None:
        config = self.kubeconfig("system:kube-scheduler")
        self._run(
            "kube-scheduler",
            *self._connection(config),
            "--feature-gates=GenericEphemeralVolume=true",
            f"--cert-dir={self.folder / 'scheduler'}",
        )

    @staticmethod
    def _connection(config: Path) -> tuple[str, ...]:
        return (
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            "--port=0",
            "--bind-address=127.0.0.1",
            f"--secure-port={reserve_port()}",
        )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
