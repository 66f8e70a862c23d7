"""A ledger on disk that a test damages."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

KEY = ec.generate_private_key(ec.SECP256R1())


OTHER = ec.generate_private_key(ec.SECP256R1())


def damage(path: Path, *statements: str) -> None:
    """Edit the file as somebody would who has the disk but not the key."""
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER IF EXISTS entry_is_not_changed")
    connection.execute("DROP TRIGGER IF EXISTS entry_is_not_deleted")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
