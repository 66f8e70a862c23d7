"""Gradient inversion works where it must, and fails where a defence is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedlearn.audit.attacks.gradient_inversion import (
    ATTACKS,
    InversionSettings,
    analytic_example,
    gradient_of,
    label_counts,
    reconstruct,
)
from fedlearn.audit.attacks.image_quality import match, psnr, ssim
from fedlearn.errors import ConfigError

LOSS = nn.functional.cross_entropy
PIXELS, DIGITS = load_digits(return_X_y=True)
X = torch.tensor(PIXELS / 16, dtype=torch.float32)
Y = torch.tensor(DIGITS)
FLAT = InversionSettings(shape=(64,), image=(8, 8), iterations=300)
PICTURE = InversionSettings(shape=(1, 8, 8), image=(8, 8), iterations=300)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def quality(original: torch.Tensor, found: torch.Tensor) -> list[float]:
    a, b = (t.reshape(-1, 8, 8).double().numpy() for t in (original, found))
    return [psnr(x, b[i]) for x, i in zip(a, match(a, b), strict=True)]


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_example_is_recovered_from_its_gradient(attack: str) -> None:
    model = dense()
    gradient = gradient_of(model, X[10:11], Y[10:11], LOSS)
    labels = label_counts(gradient["2.bias"], 1)
    assert labels == Y[10:11].tolist()
    found = reconstruct(attack, model, gradient, labels, LOSS, FLAT, seed=0)
    assert min(quality(X[10:11], found)) > 40  # the mean image has 12


@pytest.mark.parametrize("attack", ["cosine", "dlg"])
def test_a_batch_of_a_convolutional_network_is_recovered(attack: str) -> None:
    model = convolutional()
    examples = X[10:13].reshape(-1, 1, 8, 8)
    gradient = gradient_of(model, examples, Y[10:13], LOSS)
    labels = label_counts(gradient["3.bias"], 3)
    assert labels == sorted(Y[10:13].tolist())
    found = reconstruct(attack, model, gradient, labels, LOSS, PICTURE, seed=0)
    assert min(quality(examples, found)) > 30


def test_noise_on_a_clipped_update_defeats_the_attack() -> None:
    model = dense()
    gradient = gradient_of(model, X[10:11], Y[10:11], LOSS)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
    noised = {name: g + norm * torch.randn(g.shape) for name, g in gradient.items()}
    for attack in ATTACKS:
        found = reconstruct(attack, model, noised, Y[10:11].tolist(), LOSS, FLAT, seed=0)
        assert max(quality(X[10:11], found)) < 12.3  # no better than the mean image


def test_a_seed_gives_the_same_bits() -> None:
    model = dense()
    gradient = gradient_of(model, X[10:11], Y[10:11], LOSS)
    short = InversionSettings(shape=(64,), image=(8, 8), iterations=20)
    first, second = (
        reconstruct("cosine", model, gradient, [0], LOSS, short, seed=5) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_repeated_labels_are_counted() -> None:
    model = dense()
    labels = torch.tensor([3, 3, 7, 1])
    gradient = gradient_of(model, X[:4], labels, LOSS)
    assert label_counts(gradient["2.bias"], 4) == [1, 3, 3, 7]


def test_the_analytic_attack_states_what_it_needs() -> None:
    model = convolutional()
    gradient = gradient_of(model, X[:1].reshape(1, 1, 8, 8), Y[:1], LOSS)
    with pytest.raises(ConfigError, match="first layer that is Linear with a bias, not Conv2d"):
        analytic_example(model, gradient)
    with pytest.raises(ConfigError, match="a batch of 1, not 2"):
        reconstruct("analytic", model, gradient, [0, 1], LOSS, PICTURE, seed=0)


def test_nan_in_a_gradient_is_refused() -> None:
    model = dense()
    gradient = gradient_of(model, X[:1], Y[:1], LOSS)
    gradient["0.bias"][0] = math.nan
    with pytest.raises(ConfigError, match=r"NaN or infinity in '0\.bias'"):
        reconstruct("cosine", model, gradient, [0], LOSS, FLAT, seed=0)


def test_ssim_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((28, 28))
    b = np.clip(a + rng.normal(scale=0.1, size=a.shape), 0, 1)
    # skimage.metrics.structural_similarity(a, b, data_range=1.0), scikit-image 0.26.0
    assert ssim(a, b) == pytest.approx(0.9431284000804526, abs=1e-7)
    assert ssim(a, a) == pytest.approx(1.0)


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(np.ones((8, 8)), np.ones((8, 8))) == math.inf
    assert psnr(np.zeros((8, 8)), np.full((8, 8), 0.5)) == pytest.approx(6.0206, abs=1e-4)


def test_the_order_of_a_batch_is_found() -> None:
    images = np.arange(12, dtype=np.float64).reshape(3, 2, 2)
    assert match(images, images[[2, 0, 1]]) == [1, 2, 0]
