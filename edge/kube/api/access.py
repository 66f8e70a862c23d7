"""The address of an API server and the credentials for it, from this pod or from a kubeconfig.

Inside a cluster nothing but three files and two variables are read (Kubernetes documentation,
"Accessing the API from a Pod"). A kubeconfig is read by Kubernetes' own client, which supports
every kind of credentials; it is imported only then, to keep an agent's memory small.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedlearn import extras
from fedlearn.errors import ConfigError

__all__ = ["Access", "Account", "account_of", "by_kubeconfig", "in_cluster"]

_FOLDER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS: Final = 60.0
_MAX_TOKEN_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """An API server and credentials for it.

    ``authority``            path of its certificate authority
    ``certificate``, ``key`` paths of a client certificate, or empty
    ``authorization``        the header's value now, or empty
    """

    host: str
    authority: str
    certificate: str = ""
    key: str = ""
    server_name: str = ""
    proxy: str = ""
    authorization: Callable[[], str] = field(repr=False, default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The service account of this process, as its token states."""

    namespace: str
    name: str
    uid: str


def in_cluster(environment: Mapping[str, str] = os.environ, folder: Path | None = None) -> Access:
    """Return the access of this pod's service account.

    :param folder: where its token is; by default the folder in ``FEDLEARN_ACCOUNT``, or else
        the one that Kubernetes mounts.
    :raises ConfigError: when this process is not in a pod, or its token is not mounted.
    """
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "")
    folder = folder or Path(environment.get("FEDLEARN_ACCOUNT") or _FOLDER)
    authority, token = folder / "ca.crt", folder / "token"
    if not (host and port and authority.is_file() and token.is_file()):
        raise ConfigError(
            "this process does not run in a cluster, and no kubeconfig is named",
            key="kubernetes.kubeconfig",
            hint="name one in site.toml, or install the agent with the fedlearn-edge chart",
        )
    shown = f"[{host}]" if ":" in host else host
    return Access(
        host=f"https://{shown}:{port}",
        authority=str(authority),
        authorization=_Token(token).header,
    )


def by_kubeconfig(path: Path) -> Access:
    """Return the access that a kubeconfig's current context gives.

    :raises ConfigError: when it cannot be read, does not check the server's certificate, or the
        package ``kubernetes`` is not installed.
    """
    extras.require("kubernetes", needed_for="kubernetes.kubeconfig")
    from kubernetes import client, config

    found: Any = client.Configuration()
    try:
        config.load_kube_config(str(path), client_configuration=found)
    except (
        config.ConfigException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        raise ConfigError(
            f"cannot be used: {' '.join(str(error).split())[:300]}",
            where=str(path),
            key="kubernetes.kubeconfig",
            hint=f"try it: kubectl --kubeconfig {path} get pods",
        ) from error
    if not found.verify_ssl or not found.host.startswith("https://"):
        raise ConfigError(
            "does not check the API server's certificate",
            where=str(path),
            key="kubernetes.kubeconfig",
            hint="remove insecure-skip-tls-verify and name the certificate-authority",
        )
    return Access(
        host=found.host,
        authority=found.ssl_ca_cert or "",
        certificate=found.cert_file or "",
        key=found.key_file or "",
        server_name=found.tls_server_name or "",
        proxy=found.proxy or "",
        authorization=lambda: found.get_api_key_with_prefix("BearerToken") or "",
    )


def account_of(authorization: str) -> Account | None:
    """Return the service account that a bearer token names; ``None`` for other credentials.

    It is this process's own token (RFC 7519), so it is not verified here.
    """
    parts = authorization.removeprefix("Bearer ").strip().split(".")
    if len(parts) != 3:
        return None
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        bound = json.loads(base64.urlsafe_b64decode(padded))["kubernetes.io"]
        account = bound["serviceaccount"]
        return Account(
            namespace=str(bound["namespace"]), name=str(account["name"]), uid=str(account["uid"])
        )
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return None


class _Token:
    """A projected token, which the kubelet replaces before it expires."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._header = ""
        self._read_at = 0.0

    def header(self) -> str:
        """Return the token as a header's value; the file is read again after a minute."""
        with self._lock:
            now = time.monotonic()
            if not self._header or now - self._read_at > _TOKEN_SECONDS:
                with self._path.open("rb") as file:
                    token = file.read(_MAX_TOKEN_BYTES).decode().strip()
                self._header, self._read_at = f"Bearer {token}", now
            return self._header
