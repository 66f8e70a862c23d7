"""Checks from inside the cluster that a site's agent answers its clients: check.py HOST PORT.

The agent uses TLS with a key that each client has pinned. This check does not compare the key, nor
whether the coordinator has approved the site.
"""

import socket
import ssl
import sys


def main(host, port):
    """Return 0, or a message about the fault."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                print(f"client service  {host}:{port} uses {secure.version()}")
    except OSError as error:
        return f"client service: no TLS server at {host}:{port}: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
