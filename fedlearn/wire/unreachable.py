"""Why no connection to a peer came about, in words and with what to do.

gRPC has one status for all of it, UNAVAILABLE, and names the cause in its message only; Python's
sockets have an exception for each. Both become one error for each cause. A message of gRPC that is
not known here becomes the general one: it is not a reason to fail.
"""

from __future__ import annotations

import enum
import socket
import ssl
from typing import Final

from fedlearn.errors import TransportError

__all__ = [
    "Cause",
    "NotConnected",
    "Unreachable",
    "cause_of_details",
    "cause_of_error",
    "failed_to_connect",
    "unreachable",
]


class Unreachable(TransportError):
    """Nobody answered, or the peer cannot act now. The same call may succeed later."""


class NotConnected(Unreachable):
    """No connection came about, so nothing was sent: any call may be made again."""


class Cause(enum.Enum):
    """Why no connection came about. The value is what follows the name of the peer, and a hint."""

    REFUSED = (
        "cannot be reached: nothing listens on that port (connection refused)",
        "check that it runs, and that the port of the address is right",
    )
    UNKNOWN_HOST = (
        "cannot be reached: its host name is not known here",
        "check the spelling of the address, and the DNS of this machine",
    )
    NO_ROUTE = (
        "cannot be reached: there is no route to it",
        "check the address, the network of this machine, and firewalls between the two",
    )
    SILENT = (
        "cannot be reached: it does not answer",
        "check the address and the port; a firewall may drop what is sent, or another program "
        "listens there",
    )
    CLOSED = (
        "cannot be reached: it closed the connection",
        "check the port; if it is right, your certificate has expired, was revoked, or is of "
        "another coordinator: log in or enroll again",
    )
    NOT_TLS = (
        "does not speak TLS",
        "check the port: another program listens there",
    )
    NOT_GRPC = (
        "speaks TLS, but not gRPC",
        "check the port: it may be the fleet listener, which is for clients, or another program",
    )
    OTHER_CA = (
        "does not prove who it is: its certificate is not signed by the expected CA",
        "check that the address is that of your coordinator; if the coordinator was initialized "
        "again, log in or enroll again",
    )
    UNKNOWN = (
        "cannot be reached, or closed the connection",
        "check that it runs, that the address is right, that no firewall blocks it, and that your "
        "certificate has not expired",
    )


_LATER: Final = frozenset(
    {Cause.REFUSED, Cause.UNKNOWN_HOST, Cause.NO_ROUTE, Cause.SILENT, Cause.CLOSED, Cause.UNKNOWN}
)
"""The causes that may be gone when the call is made again."""

_DETAILS: Final = (
    ("CERTIFICATE_VERIFY_FAILED", Cause.OTHER_CA),
    ("is not in peer certificate", Cause.OTHER_CA),
    ("Hostname Verification", Cause.OTHER_CA),
    ("WRONG_VERSION_NUMBER", Cause.NOT_TLS),
    ("HTTP_REQUEST", Cause.NOT_TLS),
    ("ALPN", Cause.NOT_GRPC),
    ("Received http2 header with status", Cause.NOT_GRPC),
    ("onnection refused", Cause.REFUSED),
    ("lookup error", Cause.UNKNOWN_HOST),
    ("DNS resolution failed", Cause.UNKNOWN_HOST),
    ("Domain name not found", Cause.UNKNOWN_HOST),
    ("No route to host", Cause.NO_ROUTE),
    ("Network is unreachable", Cause.NO_ROUTE),
    ("Endpoint closing", Cause.SILENT),
    ("imed out", Cause.SILENT),
    ("imeout", Cause.SILENT),
    ("Socket closed", Cause.CLOSED),
    ("onnection reset", Cause.CLOSED),
)
"""Parts of gRPC's messages, the first that occurs counts. Tried against its release in tests."""


def cause_of_details(details: str) -> Cause:
    """Return the cause that the details of a status of gRPC name."""
    return next((cause for part, cause in _DETAILS if part in details), Cause.UNKNOWN)


def cause_of_error(error: OSError) -> Cause:
    """Return the cause that an error of a socket, or of its TLS handshake, stands for."""
    match error:
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return Cause.CLOSED
        case ssl.SSLError():
            return Cause.NOT_TLS
        case socket.gaierror():
            return Cause.UNKNOWN_HOST
        case ConnectionRefusedError():
            return Cause.REFUSED
        case TimeoutError():
            return Cause.SILENT
        case ConnectionError():
            return Cause.CLOSED
        case _:
            return Cause.NO_ROUTE


def failed_to_connect(details: str) -> bool:
    """Return whether the details of a status of gRPC are those of a call that was not sent.

    gRPC sends a call when the handshake has ended and the peer has sent its settings.
    """
    return "failed to connect to all addresses" in details or "errors resolving" in details


def unreachable(what: str, cause: Cause, *, hint: str = "", sent: bool = False) -> TransportError:
    """Return the error of a peer ``what``; an :class:`Unreachable` where a retry may help.

    :param hint: what to do, where that is better known than in general.
    :param sent: whether the peer may have received the call.
    """
    message, usual = cause.value
    later = Unreachable if sent else NotConnected
    kind = later if cause in _LATER else TransportError
    return kind(f"{what} {message}", hint=hint or usual)
