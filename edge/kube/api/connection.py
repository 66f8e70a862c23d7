"""A connection to one API server and one namespace, with a deadline for each call."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from edge.kube.api.access import Access, Account, account_of, by_kubeconfig, in_cluster
from edge.kube.api.errors import KubeError, Missing, Unavailable, cause_of, refusal
from edge.kube.api.resources import PODS, Object, Resource

__all__ = ["Kube"]

_CONNECT_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 20.0
_SILENCE_SECONDS: Final = 150.0
"""A watch receives a bookmark about every minute; without one, its connection is lost."""
_PAGE: Final = 500
_MAX_OBJECTS: Final = 20_000
_MAX_LOG_BYTES: Final = 1024 * 1024
_USER_AGENT: Final = "fedlearn-edge"


class Kube:
    """A connection to one API server, bound to one namespace. Safe to use from many threads."""

    def __init__(self, access: Access, *, namespace: str) -> None:
        self._access = access
        self._pool = _pool(access)
        self.namespace = namespace
        self.address = access.host

    @classmethod
    def connect(cls, kubeconfig: Path | None, *, namespace: str) -> Self:
        """Return a connection by a kubeconfig, or by the service account of this pod.

        :raises ConfigError: when there is neither, or it is not usable.
        """
        access = in_cluster() if kubeconfig is None else by_kubeconfig(kubeconfig)
        return cls(access, namespace=namespace)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    # --- one object, or all -----------------------------------------------------------

    def create(self, resource: Resource, body: Mapping[str, Any]) -> Object:
        """Create an object; return it as the server keeps it.

        :raises Exists: when one of this name exists.
        """
        return self._json("POST", resource.path(self.namespace), resource, body=body)

    def get(self, resource: Resource, name: str) -> Object:
        """Return an object.

        :raises Missing: when there is none.
        """
        return self._json("GET", resource.path(self.namespace, name), resource)

    def objects(
        self, resource: Resource, selector: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Return all objects with these labels, at most 20,000."""
        return self.snapshot(resource, selector or {})[0]

    def delete(
        self, resource: Resource, name: str, *, uid: str = "", foreground: bool = True
    ) -> None:
        """Delete an object; do nothing when there is none.

        :param uid: delete only the object with this uid, not a later one of the same name.
        :param foreground: keep it until what it owns is deleted.
        """
        body: Object = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", resource.path(self.namespace, name), resource, body=body)
        except Missing:
            return
        except KubeError as error:
            if not (uid and error.status == 409):
                raise

    def log(self, pod: str, *, lines: int = 100) -> str:
        """Return the last lines of a pod's log, at most 1 MiB."""
        query = [("tailLines", str(lines)), ("limitBytes", str(_MAX_LOG_BYTES))]
        answer = self._send("GET", PODS.path(self.namespace, pod, "log"), PODS, query=query)
        return bytes(answer.data).decode("utf-8", "replace")

    def may(self, verb: str, resource: Resource, *, part: str = "") -> bool:
        """Ask the server whether this account may do ``verb`` (SelfSubjectAccessReview)."""
        wanted = {
            "verb": verb,
            "group": resource.group,
            "resource": resource.plural,
            "subresource": part,
        }
        if resource.namespaced:
            wanted["namespace"] = self.namespace
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": wanted},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        asked = Resource(group="authorization.k8s.io", plural="selfsubjectaccessreviews")
        answer = self._json("POST", path, asked, body=review)
        return answer.get("status", {}).get("allowed") is True

    def version(self) -> str:
        """Return the server's version, such as ``v1.34.1``."""
        asked = Resource(plural="version", namespaced=False)
        return str(self._json("GET", "/version", asked).get("gitVersion", ""))

    def account(self) -> Account | None:
        """Return this process's service account, or ``None`` when it has other credentials."""
        return account_of(self._access.authorization())

    # --- watching ---------------------------------------------------------------------

    def stream(
        self, resource: Resource, selector: Mapping[str, str], *, version: str, seconds: int
    ) -> urllib3.BaseHTTPResponse:
        """Open a watch that the server ends after ``seconds``; its body is one change a line."""
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(seconds)),
            ("resourceVersion", version),
            *_selecting(selector),
        ]
        path = resource.path(self.namespace)
        return self._send("GET", path, resource, query=query, seconds=_SILENCE_SECONDS, stream=True)

    # --- requests ---------------------------------------------------------------------

    def snapshot(self, resource: Resource, selector: Mapping[str, str]) -> tuple[list[Object], str]:
        """Return all objects with these labels, and the version to watch from."""
        found: list[Object] = []
        going_on = ""
        while True:
            query = [("limit", str(_PAGE)), *_selecting(selector)]
            if going_on:
                query.append(("continue", going_on))
            page = self._json("GET", resource.path(self.namespace), resource, query=query)
            found += page.get("items") or []
            metadata = page.get("metadata", {})
            going_on = metadata.get("continue", "")
            if not going_on:
                return found, str(metadata.get("resourceVersion", ""))
            if len(found) > _MAX_OBJECTS:
                raise KubeError(f"there are more than {_MAX_OBJECTS} {resource}")

    def _json(
        self,
        method: str,
        path: str,
        resource: Resource,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Object:
        answer = self._send(method, path, resource, query=query, body=body)
        try:
            document = json.loads(answer.data)
        except (ValueError, RecursionError):
            raise KubeError(f"{self.address} does not answer as an API server does") from None
        if not isinstance(document, dict):
            raise KubeError(f"{self.address} does not answer as an API server does")
        return document

    def _send(
        self,
        method: str,
        path: str,
        resource: Resource,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Mapping[str, Any] | None = None,
        seconds: float = _CALL_SECONDS,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": _USER_AGENT}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            if authorization := self._access.authorization():
                headers["Authorization"] = authorization
            answer: urllib3.BaseHTTPResponse = self._pool.request(
                method,
                f"{self.address}{path}?{urlencode(query)}" if query else self.address + path,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds),
                preload_content=False,
            )
            if answer.status < 300 and stream:
                return answer
            _ = answer.data
        except (HTTPError, OSError) as error:
            raise Unavailable(
                f"the API server {self.address} cannot be reached: {cause_of(error)}",
                hint="check that it runs and that a NetworkPolicy lets this agent connect to it",
            ) from error
        if answer.status >= 300:
            raise refusal(answer.status, answer.data, f"{method} {resource}")
        return answer


def _selecting(selector: Mapping[str, str]) -> list[tuple[str, str]]:
    if not selector:
        return []
    return [("labelSelector", ",".join(f"{key}={value}" for key, value in selector.items()))]


def _pool(access: Access) -> urllib3.PoolManager:
    """Return a pool that trusts one authority, and neither retries nor follows redirects.

    The callers retry, as they know which calls may be repeated.
    """
    alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options: dict[str, Any] = {
        "cert_reqs": "CERT_REQUIRED",
        "ca_certs": access.authority or None,
        "cert_file": access.certificate or None,
        "key_file": access.key or None,
        "retries": False,
        "maxsize": 8,
        "socket_options": [*HTTPConnection.default_socket_options, alive],
    }
    if access.server_name:
        options["server_hostname"] = access.server_name
    if access.proxy:
        return urllib3.ProxyManager(access.proxy, **options)
    return urllib3.PoolManager(**options)
