"""The scattering transform of images (Bruna and Mallat 2013, arXiv:1203.1513), by torch's FFT.

Two scales, eight orientations, two orders: for each pixel of the image reduced by 4 there are
``1 + 2 * 8 + 8 * 8 = 81`` values. Nothing is learned, so the features cost no privacy.

The filters are Morlet wavelets and a Gaussian with the parameters that are common for images:
``sigma = 0.8 * 2^j``, ``xi = 3/4 pi / 2^j``, slant ``4 / L``.
"""

from __future__ import annotations

import functools
import math

import torch
from torch.nn import functional

SCALES = 2
ORIENTATIONS = 8
CHANNELS = 1 + SCALES * ORIENTATIONS + ORIENTATIONS**2 * SCALES * (SCALES - 1) // 2
_REDUCED = 2**SCALES
_PERIODS = 2


def scattering(images: torch.Tensor) -> torch.Tensor:
    """Return (n, 81, h / 4, w / 4) features of (n, h, w) images; h and w are multiples of 4."""
    height, width = images.shape[-2:]
    if height % _REDUCED or width % _REDUCED:
        raise ValueError(f"images of {height}x{width}; both must be multiples of {_REDUCED}")
    padded = functional.pad(images[:, None], [_REDUCED] * 4, mode="reflect")[:, 0]
    wavelets, low = _filters(*padded.shape[-2:])
    found = torch.fft.fft2(padded)
    maps = [_averaged(found, low)]
    first = [[_modulus(found, wavelet) for wavelet in scale] for scale in wavelets]
    maps += [_averaged(torch.fft.fft2(each), low) for scale in first for each in scale]
    for j, scale in enumerate(first):
        for each in scale:
            spectrum = torch.fft.fft2(each)
            for later in wavelets[j + 1 :]:
                maps += [
                    _averaged(torch.fft.fft2(_modulus(spectrum, wavelet)), low) for wavelet in later
                ]
    return torch.stack(maps, dim=1)


def _modulus(spectrum: torch.Tensor, wavelet: torch.Tensor) -> torch.Tensor:
    return torch.fft.ifft2(spectrum * wavelet).abs()


def _averaged(spectrum: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Average by the Gaussian, take every fourth pixel, and cut off the padding."""
    found = torch.fft.ifft2(spectrum * low).real[..., ::_REDUCED, ::_REDUCED]
    return found[..., 1:-1, 1:-1]


@functools.cache
def _filters(height: int, width: int) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
    """Return the wavelets of each scale and the Gaussian, in the Fourier domain."""
    wavelets = []
    for j in range(SCALES):
        sigma, xi = 0.8 * 2**j, 3 / 4 * math.pi / 2**j
        wavelets.append(
            [
                _spectrum(_morlet(height, width, sigma, math.pi * t / ORIENTATIONS, xi))
                for t in range(ORIENTATIONS)
            ]
        )
    sigma = 0.8 * 2 ** (SCALES - 1)
    return wavelets, _spectrum(_gabor(height, width, sigma, 0.0, 0.0, slant=1.0))


def _morlet(height: int, width: int, sigma: float, theta: float, xi: float) -> torch.Tensor:
    """Return a wave in a Gaussian window less its mean, so that a constant image has no answer."""
    slant = 4 / ORIENTATIONS
    wave = _gabor(height, width, sigma, theta, xi, slant=slant)
    window = _gabor(height, width, sigma, theta, 0.0, slant=slant)
    return wave - wave.sum() / window.sum() * window


def _gabor(
    height: int, width: int, sigma: float, theta: float, xi: float, *, slant: float
) -> torch.Tensor:
    """Return a periodic wave of frequency ``xi`` along ``theta``, in an elliptic Gaussian."""
    total = torch.zeros(height, width, dtype=torch.complex128)
    cos, sin = math.cos(theta), math.sin(theta)
    for down in range(-_PERIODS, _PERIODS + 1):
        for right in range(-_PERIODS, _PERIODS + 1):
            x = torch.arange(down * height, (down + 1) * height, dtype=torch.float64)[:, None]
            y = torch.arange(right * width, (right + 1) * width, dtype=torch.float64)[None, :]
            along, across = cos * x + sin * y, cos * y - sin * x
            window = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
            total += torch.polar(window, xi * along)
    return total * (slant / (2 * math.pi * sigma**2))


def _spectrum(found: torch.Tensor) -> torch.Tensor:
    """Return the Fourier transform, which is real: a wave in an even window is Hermitian."""
    return torch.fft.fft2(found).real.to(torch.float32)
