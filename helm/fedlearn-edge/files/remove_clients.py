"""Removes the agent's clients before the release is removed: remove_clients.py PATH SELECTOR.

Runs with the agent's own account. PATH is the API path of the kind in the clients' namespace.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def call(method, path, body=None):
    """Return the API server's answer to one request."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    account = Path(os.environ.get("FEDLEARN_ACCOUNT", ACCOUNT))
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{host}:{port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    context = ssl.create_default_context(cafile=str(account / "ca.crt"))
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310 (https)
        return json.load(answer)


def main(path, selector):
    """Delete each object with these labels, and its pods with it."""
    try:
        found = call("GET", f"{path}?labelSelector={urllib.parse.quote(selector)}")["items"]
        for one in found:
            name = one["metadata"]["name"]
            try:
                call("DELETE", f"{path}/{name}", {"propagationPolicy": "Background"})
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise
            print("removed", name)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {error.read(4096).decode(errors='replace')}") from None
    print(f"{len(found)} clients removed")


if __name__ == "__main__":
    main(*sys.argv[1:])
