"""Gaussian noise from a secret: the same secret gives the same bits on every machine.

The noise of a round is a function of a secret seed, so that a job that was interrupted and resumed
produces the same model to the bit. Without the seed it cannot be distinguished from fresh
randomness: AES-256 in counter mode under a key from HKDF-SHA256 (RFC 5869).

A normal deviate is the inverse of the normal distribution at a uniform 64-bit number:
Wichura 1988, "Algorithm AS 241", PPND16, relative accuracy about 1e-16, tail as far as 9.1
standard deviations (probability 2^-64 beyond). It is computed with the operations that
IEEE 754 rounds exactly (+ - * / and the square root), the logarithm included; numpy's own
``log`` and ``cos`` differ in the last bit from one processor to the next.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from attestation.length_prefixed import pack
from fedlearn.errors import PrivacyError

__all__ = ["SECRET_BYTES", "GaussianStream", "inverse_normal", "round_bytes"]

SECRET_BYTES: Final = 32
_SALT: Final = b"fedlearn-noise/1"
_WORD: Final = np.dtype("<u8")
_BLOCK: Final = 1 << 15
_MAX_ROUND: Final = 2**32
_SPLIT: Final = 0.425
_TAIL: Final = 5.0

# Coefficients of AS 241, PPND16, highest power first.
_CENTRE_A: Final = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
_CENTRE_B: Final = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
_MIDDLE_C: Final = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
_MIDDLE_D: Final = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)
_FAR_E: Final = (
    2.01033439929228813265e-7,
    2.71155556874348757815e-5,
    1.24266094738807843860e-3,
    2.65321895265761230930e-2,
    2.96560571828504891230e-1,
    1.78482653991729133580e0,
    5.46378491116411436990e0,
    6.65790464350110377720e0,
)
_FAR_F: Final = (
    2.04426310338993978564e-15,
    1.42151175831644588870e-7,
    1.84631831751005468180e-5,
    7.86869131145613259100e-4,
    1.48753612908506148525e-2,
    1.36929880922735805310e-1,
    5.99832206555887937690e-1,
    1.0,
)
_LN2_HIGH: Final = 6.93147180369123816490e-01
_LN2_LOW: Final = 1.90821492927058770002e-10
_ROOT_HALF: Final = 0.7071067811865476
# 1, 1/3, 1/5, ... of the series of the inverse hyperbolic tangent, highest power first.
_ATANH: Final = tuple(1.0 / n for n in range(23, 0, -2))


class GaussianStream:
    """A stream of independent standard normal deviates from a secret and a purpose.

    ``secret`` has at least 32 bytes and is used for one job only; ``purpose`` separates the
    streams of that job from each other. Raises :class:`fedlearn.errors.PrivacyError` for a
    secret that is too short. Not thread-safe.
    """

    __slots__ = ("_keystream",)

    def __init__(self, secret: bytes, *purpose: bytes) -> None:
        if len(secret) < SECRET_BYTES:
            raise PrivacyError(
                f"a noise secret has at least {SECRET_BYTES} bytes, not {len(secret)}",
                hint="draw it once per job and keep it sealed: with it, the noise can be removed",
            )
        key = HKDF(algorithm=SHA256(), length=32, salt=_SALT, info=pack(*purpose)).derive(secret)
        self._keystream: CipherContext = Cipher(
            algorithms.AES256(key), modes.CTR(bytes(16))
        ).encryptor()

    def standard_normal(self, count: int) -> NDArray[np.float64]:
        """Return the next ``count`` deviates.

        The stream does not depend on the sizes of the calls: two calls for 3 and 4 return the
        same deviates as one call for 7.
        """
        out = np.empty(count, np.float64)
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            out[start : start + size] = _deviates(self.words(size))
        return out

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` uniform 64-bit numbers, from which deviates are made."""
        data = self._keystream.update(bytes(count * _WORD.itemsize))
        return np.frombuffer(data, _WORD).astype(np.uint64)


def round_bytes(round: int) -> bytes:  # noqa: A002 the word for it everywhere else
    """Return the number of a round, or of a stage, as a part of a purpose.

    Raises :class:`fedlearn.errors.PrivacyError` for a number that none has.
    """
    if not 0 <= round < _MAX_ROUND:
        raise PrivacyError(f"{round} is not the number of a round")
    return struct.pack(">Q", round)


def inverse_normal(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the deviates that a standard normal variable stays below with ``probability``.

    ``probability`` is in (0, 0.5], so the deviates are not positive; the other half follows
    by symmetry, without the rounding that 1 - p would bring.
    """
    p = probability
    q = 0.5 - p
    r = 0.180625 - q * q
    out = q * _polynomial(_CENTRE_A, r) / _polynomial(_CENTRE_B, r)
    outer = np.flatnonzero(q > _SPLIT)
    if outer.size:
        root = np.sqrt(-_logarithm(p[outer]))
        s = root - 1.6
        value = _polynomial(_MIDDLE_C, s) / _polynomial(_MIDDLE_D, s)
        far = root > _TAIL
        if far.any():
            t = root[far] - _TAIL
            value[far] = _polynomial(_FAR_E, t) / _polynomial(_FAR_F, t)
        out[outer] = value
    return np.negative(out)


def _deviates(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    # 63 bits choose a probability in (0, 1/2), small ones with full relative precision; the
    # last bit chooses the sign.
    uniform = ((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-64
    magnitude = inverse_normal(uniform)
    return np.where(words & np.uint64(1), magnitude, -magnitude)


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def _logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the natural logarithm of positive numbers, within 2 units in the last place."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _ROOT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    power = (exponent - low).astype(np.float64)
    # log m = 2 atanh((m - 1) / (m + 1)); |argument| < 0.172, so the series ends below 1e-18.
    z = (mantissa - 1.0) / (mantissa + 1.0)
    series = 2.0 * z * _polynomial(_ATANH, z * z)
    return power * _LN2_HIGH + (series + power * _LN2_LOW)
