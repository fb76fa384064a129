"""Each rule keeps the picture in [0, 1], begins where it should, and pulls gradients back exactly."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.config import OptimizerSettings
from core.parametrisation import Clamped, Parametrisation, Sigmoid, Unbounded, packed, parametrise, unpacked
from tests import miniatures, reference

SIZES = [(16, 16), (17, 31), (30, 9), (1, 8)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rules(size: tuple[int, int]) -> dict[str, Parametrisation]:
    picture = miniatures.picture(*size)
    return {
        "none": Unbounded(picture),
        "clamp": Clamped(picture),
        "plain sigmoid": Sigmoid(picture, 0),
        "weighted sigmoid": Sigmoid(picture, 0.25),
        "heavily weighted sigmoid": Sigmoid(picture, 1.5),
    }


@pytest.mark.parametrize("name", ["none", "clamp", "plain sigmoid", "weighted sigmoid", "heavily weighted sigmoid"])
@pytest.mark.parametrize("size", SIZES)
def test_pull_back_is_the_adjoint_of_the_pictures_derivative(size: tuple[int, int], name: str) -> None:
    rule = rules(size)[name]
    variable = rule.start() + (0.3 * normal(*size, seed=1) if "sigmoid" in name else 0)
    variable = variable.clamp(0.01, 0.99) if name == "clamp" else variable  # where the picture moves with it
    towards, gradient = normal(*size, seed=2), normal(*size, seed=3)
    moved = torch.func.jvp(rule.picture, (variable,), (towards,))[1]
    assert float((moved * gradient).sum()) == pytest.approx(
        float((towards * rule.pull_back(variable, gradient)).sum()), rel=1e-10
    )
    step = 1e-6
    difference = (rule.picture(variable + step * towards) - rule.picture(variable - step * towards)) / (2 * step)
    assert reference.relative_error(difference, moved) < 1e-7


@pytest.mark.parametrize("name", ["none", "clamp", "plain sigmoid", "weighted sigmoid"])
def test_movement_is_how_far_a_small_step_moves_the_picture(name: str) -> None:
    rule = rules((17, 31))[name]
    variable, towards, step = rule.start(), normal(17, 31, seed=2), 1e-6
    variable = variable.clamp(0.01, 0.99) if name == "clamp" else variable
    moved = rule.picture(variable + step * towards) - rule.picture(variable)
    assert rule.movement(variable, towards) == pytest.approx(float(moved.square().mean().sqrt()) / step, rel=1e-4)


@pytest.mark.parametrize("name", ["clamp", "plain sigmoid", "weighted sigmoid", "heavily weighted sigmoid"])
@given(size=st.floats(-300, 300), seed=st.integers(0, 5))
def test_the_picture_stays_between_0_and_1(name: str, size: float, seed: int) -> None:
    rule = rules((9, 14))[name]
    picture = rule.picture(size * normal(9, 14, seed=seed))
    assert float(picture.min()) >= 0 and float(picture.max()) <= 1


@pytest.mark.parametrize("rule", [Unbounded, Clamped])
def test_the_start_is_the_picture_given(rule: type[Unbounded]) -> None:
    picture = miniatures.picture(20, 33)
    parametrisation = rule(picture)
    assert torch.equal(parametrisation.picture(parametrisation.start()), picture)


@pytest.mark.parametrize("exponent", [0, 0.25, 1.0])
def test_the_sigmoids_start_is_the_picture_given_but_for_black_and_white(exponent: float) -> None:
    # They are a hundredth away: the sigmoid never reaches them, and from nearby could hardly leave.
    picture = miniatures.picture(20, 33)
    rule = Sigmoid(picture, exponent)
    torch.testing.assert_close(rule.picture(rule.start()), picture.clamp(0.01, 0.99))


def test_the_start_is_a_copy() -> None:
    picture = miniatures.picture(8, 8)
    before = picture.clone()
    for rule in (Unbounded(picture), Clamped(picture), Sigmoid(picture, 0.25)):
        rule.start().add_(1)
        assert torch.equal(picture, before)


def test_black_and_white_can_be_left() -> None:
    picture = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(1, 3, 8, 2)
    rule = Sigmoid(picture, 0)
    gradient = rule.pull_back(rule.start(), torch.ones_like(picture))
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.01 * 0.99))


def test_a_clamped_variable_may_only_be_led_back_inside() -> None:
    rule = Clamped(torch.full((1, 3, 1, 5), 0.5))
    variable = torch.tensor([-0.1, -0.1, 0.5, 1.1, 1.1]).expand(1, 3, 1, 5)
    descent_goes = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])  # the optimiser moves against the gradient
    found = rule.pull_back(variable, -descent_goes.expand(1, 3, 1, 5))
    assert (-found[0, 0, 0]).tolist() == [1, 0, 1, 0, -1]


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(("size", "waves"), [((32, 48), (3, 5)), ((33, 21), (0, 4)), ((24, 24), (12, 0))])
def test_a_wave_is_weighted_by_its_frequency(size: tuple[int, int], waves: tuple[int, int], exponent: float) -> None:
    rule = Sigmoid(torch.full((1, 3, *size), 0.5, dtype=torch.float64), exponent)
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in size)
    phase = waves[0] * rows[:, None] / size[0] + waves[1] * columns[None] / size[1]
    wave = torch.cos(2 * math.pi * phase).expand(1, 3, *size)
    frequency = math.hypot(waves[0] / size[0], waves[1] / size[1])  # cycles per pixel
    found = torch.logit(rule.picture(0.1 * wave))
    torch.testing.assert_close(found, 0.1 * wave * (frequency + 2 / min(size)) ** -exponent)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (OptimizerSettings(), Sigmoid),
        (OptimizerSettings(parametrisation="sigmoid", preconditioning=0), Sigmoid),
        (OptimizerSettings(parametrisation="clamp"), Clamped),
        (OptimizerSettings(parametrisation="none"), Unbounded),
    ],
)
def test_settings_choose_the_rule(settings: OptimizerSettings, kind: type) -> None:
    picture = miniatures.picture(8, 12, dtype=torch.float32)
    rule = parametrise(settings, picture)
    assert type(rule) is kind
    assert rule.start().dtype == torch.float32
    assert rule.picture(rule.start() + 0.1).dtype == torch.float32


def test_without_weighting_the_variable_is_the_logit() -> None:
    rule = parametrise(OptimizerSettings(preconditioning=0), torch.full((1, 3, 4, 4), 0.5))
    assert float(rule.picture(torch.full((1, 3, 4, 4), math.log(3)))[0, 0, 0, 0]) == pytest.approx(0.75)


def test_a_packed_picture_is_the_picture_to_16_bit_and_the_same_when_packed_again() -> None:
    picture = torch.linspace(0, 1, 3 * 40 * 50).view(1, 3, 40, 50)
    kept = packed(picture)
    assert kept.dtype == torch.int16
    assert (unpacked(kept) - picture).abs().max() <= 0.51 / 65535  # half a step, and what float32 rounds
    assert unpacked(kept).min() == 0 and unpacked(kept).max() == 1
    assert torch.equal(packed(unpacked(kept)), kept)
    assert unpacked(picture) is picture


@pytest.mark.parametrize("rule", ["none", "clamp", "sigmoid"])
def test_a_packed_start_makes_the_same_rule(rule: str) -> None:
    kept = packed(miniatures.picture(17, 31).float())
    settings = OptimizerSettings.model_validate({"parametrisation": rule})
    given, plain = parametrise(settings, kept), parametrise(settings, unpacked(kept))
    assert given.start().dtype == torch.float32
    assert torch.equal(given.start(), plain.start())
    variable = plain.start() + 0.1 * normal(17, 31, seed=1).float()
    assert torch.equal(given.picture(variable), plain.picture(variable))
