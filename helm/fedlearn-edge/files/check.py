"""Checks from inside the cluster that a site's agent answers its clients: check.py HOST PORT.

The agent speaks TLS with a key that each client has pinned; which key it is, is not checked
here. Whether the coordinator has let the site in is the coordinator's to say.
"""

import socket
import ssl
import sys


def main(host, port):
    """Return 0, or say what is wrong."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                print(f"agent    {host}:{port} speaks {secure.version()}")
    except OSError as error:
        return f"agent: nobody speaks TLS at {host}:{port}: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
