"""Checks from inside the cluster that a coordinator answers: check.py HOST GATE CONTROL FLEET.

The gate must present a certificate for the name that all clients request. Control and fleet must
refuse clients without a certificate. The CA is not checked here: sites pin it by their join token.
"""

import socket
import ssl
import sys

NAME = "coordinator.fedlearn.internal"


def connect(host, port):
    """Return a TLS connection on which nothing was verified."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection((host, int(port)), timeout=10)
    return context.wrap_socket(plain, server_hostname=NAME)


def main(host, gate, control, fleet):
    """Return 0, or a message about the fault."""
    try:
        with connect(host, gate) as secure:
            leaf, version = secure.getpeercert(binary_form=True), secure.version()
    except OSError as error:
        return f"gate: no TLS server at {host}:{gate}: {error}"
    if not leaf or NAME.encode() not in leaf:
        return (
            f"gate: the server at {host}:{gate} has no certificate for {NAME}: it is not a "
            "coordinator, or TLS ends before it"
        )
    print(f"gate     {host}:{gate} uses {version} for {NAME}")
    for what, port in (("control", control), ("fleet", fleet)):
        try:
            with connect(host, port) as secure:
                secure.sendall(b"GET / HTTP/1.1\r\n\r\n")
                received = secure.recv(64)
        except (ssl.SSLError, ConnectionResetError):
            print(f"{what:8} {host}:{port} refuses a client without a certificate")
            continue
        except OSError as error:
            return f"{what}: no server at {host}:{port}: {error}"
        if received:
            return f"{what}: {host}:{port} answers a client that has no certificate"
        print(f"{what:8} {host}:{port} refuses a client without a certificate")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
