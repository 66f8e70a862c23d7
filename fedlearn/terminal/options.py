"""Options that several programs have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from fedlearn.errors import ConfigError

__all__ = ["SAMPLE_KEY_FLAG", "sample_key_option", "sha256"]

SAMPLE_KEY_FLAG: Final = "--insecure-trust-sample-key"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T", bound=Callable[..., Any])


def sha256(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[bytes, ...]:
    """Return the digests of an option that may be repeated, each once.

    :raises click.BadParameter: when one is not a SHA-256 in hexadecimal.
    """
    wrong = [text for text in value if not _SHA256.fullmatch(text)]
    if wrong:
        raise click.BadParameter(
            f"{wrong[0][:80]!r} is not a SHA-256: 64 digits in hexadecimal, lower case"
        )
    return tuple(dict.fromkeys(map(bytes.fromhex, value)))


def sample_key_option(whose: str, *, multiple: bool = False) -> Callable[[_T], _T]:
    """Add ``--insecure-trust-sample-key``; the command gets digests of 32 bytes.

    As ``sample_keys``, a tuple, with ``multiple``; else as ``sample_key``, empty where not given.
    """

    def convert(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        # PEM is parsed by a package that takes a while to import.
        from fedlearn.config.development_key import named_digest

        def read(text: str) -> bytes:
            try:
                return named_digest(text)
            except ConfigError as error:
                raise ConfigError(f"{error}", key=SAMPLE_KEY_FLAG, hint=error.hint) from None

        if multiple:
            return tuple(dict.fromkeys(map(read, value)))
        return read(value) if value else b""

    return click.option(
        SAMPLE_KEY_FLAG,
        "sample_keys" if multiple else "sample_key",
        multiple=multiple,
        default=() if multiple else "",
        callback=convert,
        metavar="SHA256|FILE",
        help=f"Accept sample evidence that {whose} development key signs, by its digest or its "
        "public half. It proves nothing about hardware.",
    )
