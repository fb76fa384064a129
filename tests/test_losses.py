"""Statistics and distances against known answers, plain float64 formulas, and finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from core import losses
from tests import reference

SHAPES = [(1, 1, 1), (3, 7, 11), (8, 33, 5), (5, 1, 40), (16, 20, 20)]


def features(channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(channels + 10 * height + 1000 * width)
    return torch.randn(1, channels, height, width, generator=draw, dtype=torch.float64).to(dtype)


# ── The Gram matrix ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_gram_of_two_channels_is_known() -> None:
    two = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, -1.0]]]])
    assert losses.gram(two).tolist() == [[30.0, -2.0], [-2.0, 2.0]]
    assert losses.gram(two, with_ones=True).tolist() == [[30.0, -2.0, 10.0], [-2.0, 2.0, 0.0], [10.0, 0.0, 4.0]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels last"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_gram_is_that_of_the_paper(
    shape: tuple[int, int, int], layout: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    exact = features(*shape)
    found = losses.gram(exact.to(dtype).contiguous(memory_format=layout))
    assert found.dtype == dtype
    assert reference.relative_error(found, reference.gram(exact)) < tolerance


def test_gram_with_ones_is_that_of_the_features_and_a_constant_one() -> None:
    some = features(6, 9, 13)
    extended = torch.cat([some, torch.ones(1, 1, 9, 13, dtype=some.dtype)], 1)
    assert reference.relative_error(losses.gram(some, with_ones=True), reference.gram(extended)) < 1e-13


def test_gram_of_16_bit_features_is_summed_in_float32() -> None:
    # A sum in bfloat16 would stand still at 256, where the next number is 258.
    ones = torch.ones(1, 2, 100, 300, dtype=torch.bfloat16)
    found = losses.gram(ones, with_ones=True)
    assert found.dtype == torch.float32
    assert found.tolist() == [[30000.0] * 3] * 3


@pytest.mark.parametrize("shape", SHAPES)
def test_gram_of_16_bit_features_is_that_of_the_same_numbers_in_float64(shape: tuple[int, int, int]) -> None:
    rounded = features(*shape, dtype=torch.bfloat16)
    assert reference.relative_error(losses.gram(rounded), reference.gram(rounded.double())) < 1e-2


@given(cut=st.integers(1, 22), with_ones=st.booleans())
def test_gram_of_a_picture_is_the_sum_of_its_parts(cut: int, with_ones: bool) -> None:
    whole = features(4, 23, 9)
    parts = sum(losses.gram(part, with_ones=with_ones) for part in (whole[:, :, :cut], whole[:, :, cut:]))
    torch.testing.assert_close(parts, losses.gram(whole, with_ones=with_ones))


@pytest.mark.parametrize("with_ones", [False, True])
def test_gram_passes_gradcheck(with_ones: bool) -> None:
    assert gradcheck(lambda some: losses.gram(some, with_ones=with_ones), features(3, 4, 5).requires_grad_())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_ones", [False, True])
def test_gram_gradient_is_the_derivative(shape: tuple[int, int, int], with_ones: bool) -> None:
    some = features(*shape).requires_grad_()
    extended = torch.cat([some, torch.ones_like(some[:, :1])], 1) if with_ones else some
    matrix = reference.gram(extended)
    towards = torch.randn(matrix.shape, dtype=torch.float64)  # not symmetric, on purpose
    (expected,) = torch.autograd.grad((matrix * towards).sum(), some)
    assert reference.relative_error(losses.gram_gradient(some.detach(), towards), expected) < 1e-13


# ── Distances ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_sum_of_a_difference_is_twice_the_papers_content_loss(shape: tuple[int, int, int]) -> None:
    first, second = features(*shape), features(*shape).flip(0) + 0.5
    content_loss = 0.5 * torch.nn.functional.mse_loss(first, second, reduction="sum")
    torch.testing.assert_close(losses.squared_sum(first - second), 2 * content_loss)


def test_squared_sum_of_16_bit_features_is_summed_in_float32() -> None:
    assert float(losses.squared_sum(torch.ones(1, 3, 100, 100, dtype=torch.bfloat16))) == 30000.0


def test_squared_sum_passes_gradcheck() -> None:
    assert gradcheck(losses.squared_sum, features(3, 4, 5).requires_grad_())


def test_relative_distance_is_0_for_the_target_and_1_for_nothing() -> None:
    target = features(5, 5, 1)
    assert float(losses.relative_squared_distance(target, target)) == 0
    assert float(losses.relative_squared_distance(torch.zeros_like(target), target)) == pytest.approx(1)
    assert float(losses.relative_squared_distance(3 * target, target)) == pytest.approx(4)


@given(scale=st.floats(1e-3, 1e6))
def test_relative_distance_does_not_know_the_scale(scale: float) -> None:
    value, target = features(4, 4, 1), features(4, 4, 1).flip(1)
    torch.testing.assert_close(
        losses.relative_squared_distance(scale * value, scale * target), losses.relative_squared_distance(value, target)
    )


def test_relative_distance_from_an_empty_target_is_a_number() -> None:
    dead = torch.zeros(4, 4)
    assert float(losses.relative_squared_distance(dead, dead)) == 0
    assert float(losses.relative_squared_distance(dead + 1e-30, dead)) < float("inf")


def test_relative_distance_passes_gradcheck() -> None:
    target = features(3, 3, 1)
    assert gradcheck(lambda value: losses.relative_squared_distance(value, target), (2 * target).requires_grad_())


# ── Total variation ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_total_variation_of_known_pictures() -> None:
    ramp = torch.arange(5.0).expand(1, 3, 4, 5)
    board = (torch.arange(6)[:, None] + torch.arange(8)[None]).remainder(2).expand(1, 3, 6, 8).double()
    assert float(losses.total_variation(torch.full((1, 3, 4, 5), 0.7))) == 0
    assert float(losses.total_variation(ramp)) == 1
    assert float(losses.total_variation(board)) == 2


@pytest.mark.parametrize("size", [(2, 2), (17, 31), (40, 3)])
def test_total_variation_is_the_mean_squared_difference_of_neighbours(size: tuple[int, int]) -> None:
    picture = features(3, *size).sigmoid()
    pixels = picture[0].tolist()
    height, width = size
    down = [(c[y + 1][x] - c[y][x]) ** 2 for c in pixels for y in range(height - 1) for x in range(width)]
    right = [(c[y][x + 1] - c[y][x]) ** 2 for c in pixels for y in range(height) for x in range(width - 1)]
    expected = sum(down) / len(down) + sum(right) / len(right)
    assert float(losses.total_variation(picture)) == pytest.approx(expected, rel=1e-12)


def test_total_variation_passes_gradcheck() -> None:
    assert gradcheck(losses.total_variation, features(3, 5, 4).requires_grad_())
