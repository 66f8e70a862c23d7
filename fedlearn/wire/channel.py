"""gRPC channels to the coordinator: limits, keepalive, and trusted certificates.

A channel trusts the given certificates only, never those of the machine. The name that is
checked is :data:`fedlearn.identity.spiffe.COORDINATOR_DNS`: only the coordinator's CA signs it, so
an address may change. When the root is the server's own certificate (a partial chain), the channel
connects only to the holder of that key.
"""

from __future__ import annotations

from typing import Final

import grpc

from fedlearn.app.checks import MAX_BUNDLE_BYTES
from fedlearn.identity.join import checked_address
from fedlearn.identity.spiffe import COORDINATOR_DNS

__all__ = [
    "HEARTBEAT_SECONDS",
    "MAX_CONTROL_BYTES",
    "MAX_MESSAGE_BYTES",
    "open_channel",
]

HEARTBEAT_SECONDS: Final = 15.0
"""How long each end of a site's stream stays silent at most."""

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024 + 64 * 1024
"""Upper bound of a message, except a job's submission: 4 MiB of evidence and its envelope."""

MAX_CONTROL_BYTES: Final = MAX_BUNDLE_BYTES + 4 * 1024 * 1024
"""Upper bound of a job's submission."""


def open_channel(
    address: str,
    *,
    roots: bytes,
    chain: bytes | None = None,
    key: bytes | None = None,
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> grpc.Channel:
    """Return a channel to ``host:port``. It connects when it is first used.

    ``roots`` is PEM; ``chain`` and ``key`` (PEM) identify the caller in mutual TLS.

    :raises ConfigError: when the address is malformed.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=roots, private_key=key, certificate_chain=chain
    )
    options = [
        ("grpc.ssl_target_name_override", COORDINATOR_DNS),
        ("grpc.default_authority", COORDINATOR_DNS),
        ("grpc.max_send_message_length", max_bytes),
        ("grpc.max_receive_message_length", MAX_CONTROL_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # An attempt without any answer ends, so that the next one can begin.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        # The pinning handshake uses no proxy, and the calls after it must not either.
        ("grpc.enable_http_proxy", 0),
        # Channels with other certificates must not share a connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.secure_channel(checked_address(address), credentials, options=options)
