"""The parts of the DP-SGD experiment: scattering, the draw, the noise and what is spent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import torch

APP = Path(__file__).resolve().parents[2] / "experiments" / "dpsgd" / "app"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(APP)
    torch.set_num_threads(1)
    torch.manual_seed(0)


def module(name: str) -> Any:
    import importlib

    return importlib.import_module(f"dpsgd_app.{name}")


def test_a_constant_image_has_an_average_only() -> None:
    features = module("scattering").scattering(torch.full((1, 28, 28), 0.5))
    assert features.shape == (1, 81, 7, 7)
    assert torch.allclose(features[:, 0], torch.tensor(0.5), atol=1e-4)
    assert features[:, 1:].abs().max() < 1e-4


def test_a_turned_image_has_the_features_of_turned_orientations() -> None:
    scattering = module("scattering").scattering
    image = torch.rand(1, 28, 28)
    features = scattering(image)[:, 1:9]
    # Flipped, the wave along t becomes the wave along 8 - t.
    flipped = scattering(image.flip(1)).flip(2)[:, 1:9]
    order = [0, 7, 6, 5, 4, 3, 2, 1]
    middle = (..., slice(2, 5), slice(2, 5))
    # The grid of every fourth pixel is not symmetric, so this holds about.
    difference = (features[:, order][middle].mean() - flipped[middle].mean()).abs()
    assert difference < 0.05 * features.mean()


def test_sizes_that_cannot_be_reduced_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 30x28; both must be multiples of 4"):
        module("scattering").scattering(torch.zeros(1, 30, 28))


def test_epsilon_agrees_with_another_accountant() -> None:
    accounting = module("private").Accounting(
        examples=60_000, batch=4096, steps=560, epsilon=3.0, delta=1e-5
    )
    spent = accounting.spent(560)
    assert 2.95 < spent <= 3.0
    other = dp_accounting.rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(
        4096 / 60_000, dp_accounting.GaussianDpEvent(accounting.noise_multiplier)
    )
    other.compose(event, 560)
    assert other.get_epsilon(1e-5) == pytest.approx(spent, rel=0.02)
    assert accounting.spent(56) < spent


def test_a_batch_of_everybody_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 50 from 50 examples"):
        module("private").Accounting(examples=50, batch=50, steps=1, epsilon=3.0, delta=1e-5)


def test_one_step_has_the_noise_of_its_multiplier() -> None:
    private = module("private")
    model = torch.nn.Linear(20_000, 1, bias=False)
    before = model.weight.detach().clone()
    # Without a gradient, as the inputs are zero, the change is the noise alone.
    inputs, labels = torch.zeros(40, 20_000), torch.zeros(40, dtype=torch.long)
    private.train(
        model,
        inputs,
        labels,
        steps=1,
        batch=10,
        rate=1.0,
        momentum=0.0,
        clip=0.5,
        noise_multiplier=2.0,
    )
    change = (model.weight - before).detach()
    expected = 2.0 * 0.5 / 10
    deviation = change.std().item()
    # The sample deviation of 20,000 draws is within 4 standard errors.
    assert deviation == pytest.approx(expected, rel=4 / math.sqrt(2 * 20_000))


def test_an_example_moves_the_sum_by_the_clip_at_most() -> None:
    private = module("private")
    model = torch.nn.Linear(4, 2)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    inputs, labels = 1000 * torch.ones(200, 4), torch.zeros(200, dtype=torch.long)
    torch.manual_seed(3)
    drawn = len(private._drawn(200, 20))
    torch.manual_seed(3)
    private.train(
        model,
        inputs,
        labels,
        steps=1,
        batch=20,
        rate=1.0,
        momentum=0.0,
        clip=0.1,
        noise_multiplier=1e-9,
    )
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() <= 0.1 * drawn / 20 * 1.001
