"""Secrets that only this TPM opens, and only in the state in which they were sealed.

A secret is sealed under the TPM's storage primary key to a policy over PCR values (TPM 2.0 Part 1,
section 19.7.7.7, ``TPM2_PolicyPCR``): after a selected PCR changed, this boot cannot open it any
more. The secret leaves the TPM in an encrypted session salted to the storage key, so that a probe
on the bus cannot read it.

Sealing gives no *authenticity*. Everyone who may use the TPM can seal another value to the same
PCRs, so a caller must compare an unsealed value with a fingerprint that it trusts. No other TPM
opens a blob.

::

    seal = TpmSeal(tcti, directory, pcrs=(7, 14))
    blob = seal.seal(secret)            # AttesterError when the TPM cannot be used
    secret = seal.unseal(blob)          # UnsealError when the state or the TPM is another

    counter = TpmCounter(tcti, 0x01500F1E)
    counter.increment()                 # created on first use; returns the new value
    counter.read()
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attestation.attesters.tpm2_tools import Tpm2CommandError, Tpm2Tools, Workspace
from attestation.errors import AttesterError, UnsealError

__all__ = ["COUNTER_INDEX", "TpmCounter", "TpmSeal"]

COUNTER_INDEX: Final = 0x01500F1E
"""NV index of the counter, in the range that TCG leaves to the owner (0x01500000 up)."""

_MAGICS: Final = {b"FLTS\x01": "sha256", b"FLTS\x02": "sha384", b"FLTS\x03": "sha512"}
"""Prefixes of blobs, by the bank of the PCRs to which they are sealed."""

_MAGIC_BYTES: Final = 5
_MAX_SECRET_BYTES: Final = 128
_MAX_PART_BYTES: Final = 1024
_PCR_COUNT: Final = 24

_STORAGE_TEMPLATE: Final = ("-C", "o", "-G", "ecc256:aes128cfb", "-c", "storage.ctx")
_SEALED_ATTRIBUTES: Final = "fixedtpm|fixedparent|noda"

# Response codes (TPM 2.0 Part 2, section 6.6), without handle, session and parameter numbers.
_RC_POLICY_FAIL: Final = 0x09D
_RC_PCR_CHANGED: Final = 0x128
_RC_NV_UNINITIALIZED: Final = 0x14A
_RC_HANDLE: Final = 0x08B


class TpmSeal:
    """Seals secrets to this TPM and its PCRs ``pcrs``, of the SHA-256, SHA-384 or
    SHA-512 bank: the first that the TPM has.

    ``directory`` is the private directory in which the caller keeps its blobs; it is made
    with mode 0700 when absent. Nothing secret is ever written to it.
    """

    def __init__(self, tcti: str, directory: Path, pcrs: Iterable[int] = (7, 14)) -> None:
        self._pcrs = tuple(sorted(set(pcrs)))
        if not self._pcrs or not all(0 <= pcr < _PCR_COUNT for pcr in self._pcrs):
            raise ValueError(f"PCRs are numbered 0 to {_PCR_COUNT - 1}, and one is needed")
        self._tools = Tpm2Tools(tcti)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def seal(self, secret: bytes) -> bytes:
        """Return a blob that :meth:`unseal` opens while the PCRs have their present values.

        ``secret`` has 1 to 128 bytes.

        :raises AttesterError: when the TPM cannot be used, or no bank has these PCRs.
        """
        if not 1 <= len(secret) <= _MAX_SECRET_BYTES:
            raise ValueError(f"a sealed secret has 1 to {_MAX_SECRET_BYTES} bytes")
        with self._tools.workspace(objects=True) as work:
            bank = work.bank(self._pcrs)
            work.run("createprimary", "-Q", *_STORAGE_TEMPLATE)
            selection = self._selection(bank)
            work.run("createpolicy", "-Q", "--policy-pcr", "-l", selection, "-L", "policy")
            work.run(
                *("create", "-Q", "-C", "storage.ctx", "-L", "policy", "-i", "-"),
                *("-a", _SEALED_ATTRIBUTES, "-u", "public", "-r", "private"),
                stdin=secret,
            )
            public, private = work.read("public"), work.read("private")
        parts = b"".join(struct.pack(">H", len(part)) + part for part in (public, private))
        magic = next(start for start, name in _MAGICS.items() if name == bank)
        return magic + bytes((len(self._pcrs), *self._pcrs)) + parts

    def unseal(self, blob: bytes) -> bytes:
        """Return the secret in ``blob``.

        :raises UnsealError: when a PCR changed since it was sealed, when another TPM sealed
            it, when its bytes are altered, or when it is sealed to other PCRs.
        :raises AttesterError: when the TPM cannot be used; trying again may help.
        """
        bank, public, private = self._parse(blob)
        with self._tools.workspace(objects=True) as work:
            self._check_bank(work, bank)
            work.run("createprimary", "-Q", *_STORAGE_TEMPLATE)
            work.write("public", public)
            work.write("private", private)
            try:
                work.run(
                    *("load", "-Q", "-C", "storage.ctx", "-u", "public", "-r", "private"),
                    *("-c", "sealed.ctx"),
                )
            except Tpm2CommandError as error:
                if error.code is None and _is_unreachable(error):
                    raise
                raise UnsealError(
                    f"this TPM did not seal it, or its bytes are altered ({error.reason})"
                ) from None
            work.release()
            return self._open(work, bank)

    def _check_bank(self, work: Workspace, bank: str) -> None:
        """A policy over a bank that is not allocated would demand no state at all."""
        try:
            work.bank(self._pcrs, (bank,))
        except Tpm2CommandError:
            raise
        except AttesterError as error:
            raise UnsealError(str(error), hint=error.hint) from error

    def _open(self, work: Workspace, bank: str) -> bytes:
        work.run(
            *("startauthsession", "-Q", "--policy-session"),
            *("--tpmkey-context", "storage.ctx", "-S", "session.ctx"),
        )
        work.run("sessionconfig", "-Q", "--enable-encrypt", "session.ctx")
        work.run("policypcr", "-Q", "-S", "session.ctx", "-l", self._selection(bank))
        try:
            return work.run("unseal", "-c", "sealed.ctx", "-p", "session:session.ctx")
        except Tpm2CommandError as error:
            if error.code is None:
                raise
            if _base_code(error.code) in {_RC_POLICY_FAIL, _RC_PCR_CHANGED}:
                names = ", ".join(map(str, self._pcrs))
                raise UnsealError(
                    f"the platform's state is not the one it was sealed in (PCRs {names})",
                    hint="use the recovery key, then seal again in the present state",
                ) from None
            raise UnsealError(f"the TPM refused: {error.reason}") from None

    def _selection(self, bank: str) -> str:
        return f"{bank}:" + ",".join(map(str, self._pcrs))

    def _parse(self, blob: bytes) -> tuple[str, bytes, bytes]:
        bank = _MAGICS.get(blob[:_MAGIC_BYTES])
        if bank is None or len(blob) <= _MAGIC_BYTES:
            raise UnsealError("not a secret sealed by a TPM")
        offset = _MAGIC_BYTES + 1 + blob[_MAGIC_BYTES]
        pcrs = tuple(blob[_MAGIC_BYTES + 1 : offset])
        if pcrs != self._pcrs:
            raise UnsealError(f"sealed to PCRs {pcrs}, and {self._pcrs} are required")
        parts = []
        for name in ("public part", "private part"):
            if offset + 2 > len(blob):
                raise UnsealError(f"{name} is missing")
            (length,) = struct.unpack_from(">H", blob, offset)
            offset += 2
            if not 2 <= length <= _MAX_PART_BYTES or offset + length > len(blob):
                raise UnsealError(f"{name} has an impossible length")
            part = blob[offset : offset + length]
            if int.from_bytes(part[:2], "big") != length - 2:
                raise UnsealError(f"{name} contradicts its length")
            parts.append(part)
            offset += length
        if offset != len(blob):
            raise UnsealError(f"{len(blob) - offset} bytes too many")
        return bank, parts[0], parts[1]


class TpmCounter:
    """A counter in the TPM's non-volatile memory that never decreases.

    Callers compare it with a value on disk to detect that the disk was rolled back. Deleting and
    defining it again does not lower it: a TPM starts a new counter above every earlier one
    (TPM 2.0 Part 1, section 37.2.4).
    """

    def __init__(self, tcti: str, index: int = COUNTER_INDEX) -> None:
        if not 0x01000000 <= index <= 0x01FFFFFF:
            raise ValueError("an NV index lies between 0x01000000 and 0x01ffffff")
        self._tools = Tpm2Tools(tcti)
        self._index = f"0x{index:08x}"

    def exists(self) -> bool:
        """Return whether the counter was created.

        :raises AttesterError: when the TPM cannot be used, or the index is something else.
        """
        with self._tools.workspace() as work:
            return self._exists(work)

    def create(self) -> int:
        """Define the counter unless it is there, and return its value.

        :raises AttesterError: when the TPM cannot be used, or the index is something else.
        """
        with self._tools.workspace() as work:
            if not self._exists(work):
                work.run(
                    *("nvdefine", "-Q", self._index, "-C", "o", "-s", "8", "-a"),
                    "ownerread|ownerwrite|authread|authwrite|no_da|nt=counter",
                )
            try:
                return self._value(work)
            except Tpm2CommandError as error:
                if error.code != _RC_NV_UNINITIALIZED:
                    raise
            work.run("nvincrement", "-Q", "-C", "o", self._index)
            return self._value(work)

    def read(self) -> int:
        """Return the value.

        :raises AttesterError: when the counter does not exist or the TPM cannot be used.
        """
        with self._tools.workspace() as work:
            try:
                return self._value(work)
            except Tpm2CommandError as error:
                if error.code is None or _base_code(error.code) != _RC_HANDLE:
                    raise
                raise AttesterError(f"this TPM has no counter at {self._index}") from None

    def increment(self) -> int:
        """Add one, creating the counter on first use, and return the new value.

        The new value is in non-volatile memory when this returns.

        :raises AttesterError: when the TPM cannot be used, or cannot write its memory any more.
        """
        self.create()
        with self._tools.workspace() as work:
            work.run("nvincrement", "-Q", "-C", "o", self._index)
            return self._value(work)

    def _exists(self, work: Workspace) -> bool:
        try:
            described = work.run("nvreadpublic", self._index)
        except Tpm2CommandError as error:
            if error.code is not None and _base_code(error.code) == _RC_HANDLE:
                return False
            raise
        if b"nt=0x1" not in described and b"nt=counter" not in described:
            raise AttesterError(
                f"NV index {self._index} of this TPM is in use and not a counter",
                hint="choose another index",
            )
        return True

    def _value(self, work: Workspace) -> int:
        data = work.run("nvread", "-C", "o", "-s", "8", self._index)
        if len(data) != 8:
            raise AttesterError(f"NV index {self._index} holds {len(data)} bytes, a counter has 8")
        return int.from_bytes(data, "big")


def _base_code(code: int) -> int:
    """Remove the number of the parameter, handle or session from a format-one code."""
    return code & 0x0BF if code & 0x080 else code


def _is_unreachable(error: Tpm2CommandError) -> bool:
    return "tcti" in error.reason.lower() or "not installed" in error.reason
