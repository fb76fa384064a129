"""Bands against the whole picture: the same loss and gradient, whatever the shape, the bands and the padding."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from core import tiles
from core.errors import WeightsError
from core.features import Padding, Pooling, block_of
from core.tiles import WHOLE, BlockTiling, ContentTarget, Objective, Tiling
from tests import miniatures, reference

STYLE = ("relu1_1", "conv2_1", "relu3_1", "relu4_1", "relu5_1")
CONTENT = ("conv1_2", "relu4_2")
TENSORS = miniatures.vgg()


def targets(size: tuple[int, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gram matrices per position of one picture, and features of another of `size`; float64."""
    style = reference.activations(reference.Vgg(TENSORS), miniatures.picture(60, 80, seed=1))
    content = reference.activations(reference.Vgg(TENSORS), miniatures.picture(*size, seed=2))
    grams = {layer: reference.gram_per_position(style[layer]) for layer in STYLE}
    return grams, {layer: content[layer] for layer in CONTENT}


def expected(vgg: reference.Vgg, picture: Tensor) -> tuple[float, float, Tensor]:
    """Style and content loss, and the gradient of style + 0.3 content: the whole picture at once, in float64."""
    leaf = picture.double().requires_grad_()
    found = reference.activations(vgg, leaf)
    grams, features = targets((picture.shape[2], picture.shape[3]))
    style = torch.stack([(reference.gram_per_position(found[n]) - g).pow(2).sum() for n, g in grams.items()]).sum()
    content = torch.stack([7 * (found[name] - target).pow(2).sum() for name, target in features.items()]).sum()
    (gradient,) = torch.autograd.grad(style + 0.3 * content, leaf)
    return float(style.detach()), float(content.detach()), gradient


def objective(picture: Tensor) -> Objective:
    grams, features = targets((picture.shape[2], picture.shape[3]))

    def style_loss(sums: Mapping[str, Tensor], positions: Mapping[str, int]) -> Tensor:
        terms = [(sums[layer] / positions[layer] - grams[layer].to(sums[layer])).pow(2).sum() for layer in STYLE]
        return torch.stack(terms).sum()

    content = {layer: ContentTarget(value.to(picture.dtype), 7.0) for layer, value in features.items()}
    return Objective(style_loss, STYLE, content=content, content_weight=0.3)


def assert_exact(vgg: reference.Vgg, picture: Tensor, tiling: Tiling, *, loss: float, gradient: float) -> None:
    network = miniatures.network(vgg.tensors, pooling=vgg.pooling, padding=vgg.padding, dtype=picture.dtype)
    style, content, derivative = expected(vgg, picture)
    found = tiles.loss_and_gradient(network, picture, objective(picture), tiling)
    assert found.style == pytest.approx(style, rel=loss)
    assert found.content == pytest.approx(content, rel=loss)
    assert found.gradient.shape == picture.shape
    assert reference.relative_error(found.gradient, derivative) < gradient


# ── Against the whole picture ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("rows", [2, 10, 1 << 30])
def test_bands_of_all_heights(rows: int, pooling: Pooling, padding: Padding, keep: bool) -> None:
    vgg = reference.Vgg(TENSORS, pooling=pooling, padding=padding)
    assert_exact(vgg, miniatures.picture(53, 37), (BlockTiling(rows, keep),), loss=1e-11, gradient=1e-11)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("rows", [2, 16, 34])
def test_bands_in_float32(rows: int, keep: bool) -> None:
    picture = miniatures.picture(101, 67, dtype=torch.float32)
    assert_exact(reference.Vgg(TENSORS), picture, (BlockTiling(rows, keep),), loss=1e-5, gradient=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (256, 37), (39, 256)])
def test_pictures_smaller_than_a_band(size: tuple[int, int]) -> None:
    assert_exact(
        reference.Vgg(TENSORS), miniatures.picture(*size), (BlockTiling(512, False),), loss=1e-11, gradient=1e-11
    )


TILINGS = st.lists(
    st.builds(BlockTiling, rows=st.integers(1, 24).map(lambda half: 2 * half), keep=st.booleans()),
    min_size=1,
    max_size=5,
).map(tuple)


@settings(max_examples=25)
@given(
    height=st.integers(32, 100),
    width=st.integers(32, 60),
    tiling=TILINGS,
    padding=st.sampled_from(["replicate", "reflect", "zeros"]),
    pooling=st.sampled_from(["max", "average"]),
)
@example(height=33, width=32, tiling=(BlockTiling(2, True), BlockTiling(2, False)), padding="reflect", pooling="max")
def test_any_bands_of_any_shape(height: int, width: int, tiling: Tiling, padding: str, pooling: str) -> None:
    vgg = reference.Vgg(TENSORS, pooling=pooling, padding=padding)
    assert_exact(vgg, miniatures.picture(height, width), tiling, loss=1e-11, gradient=1e-11)


def test_each_block_may_have_bands_of_its_own() -> None:
    tiling = (BlockTiling(8, False), BlockTiling(30, True), BlockTiling(4, False))
    assert_exact(reference.Vgg(TENSORS), miniatures.picture(70, 45), tiling, loss=1e-11, gradient=1e-11)


@pytest.mark.parametrize("tiling", [WHOLE, (BlockTiling(6, False),)], ids=["whole", "bands"])
def test_16_bit_bands_point_where_the_exact_gradient_does(tiling: Tiling) -> None:
    picture = miniatures.picture(96, 64, dtype=torch.float32)
    network = miniatures.network(TENSORS, dtype=torch.bfloat16)
    style, content, gradient = expected(reference.Vgg(TENSORS), picture)
    wanted = objective(picture)
    rounded = {layer: ContentTarget(t.features.bfloat16(), t.factor) for layer, t in wanted.content.items()}
    wanted = Objective(wanted.style_loss, STYLE, content=rounded, content_weight=0.3)
    found = tiles.loss_and_gradient(network, picture, wanted, tiling)
    assert found.gradient.dtype == torch.float32
    assert found.style == pytest.approx(style, rel=0.05)
    assert found.content == pytest.approx(content, rel=0.05)
    assert torch.cosine_similarity(found.gradient.flatten().double(), gradient.flatten(), 0) > 0.97


# ── Statistics and features ──────────────────────────────────────────────────────────────────────────────────────────


@given(height=st.integers(32, 90), width=st.integers(32, 50), tiling=TILINGS, with_ones=st.booleans())
@settings(max_examples=12)
def test_gram_matrices_of_bands_are_those_of_the_picture(
    height: int, width: int, tiling: Tiling, with_ones: bool
) -> None:
    picture = miniatures.picture(height, width)
    whole = reference.activations(reference.Vgg(TENSORS), picture)
    found = tiles.grams(miniatures.network(TENSORS), picture, STYLE, with_ones=with_ones, tiling=tiling)
    assert found.keys() == set(STYLE)
    for layer, matrix in found.items():
        ones = torch.ones_like(whole[layer][:, :1])
        features = torch.cat([whole[layer], ones], 1) if with_ones else whole[layer]
        assert reference.relative_error(matrix, reference.gram(features)) < 1e-12


@given(height=st.integers(32, 90), width=st.integers(32, 50), tiling=TILINGS)
@settings(max_examples=12)
def test_activations_of_bands_are_those_of_the_picture(height: int, width: int, tiling: Tiling) -> None:
    picture = miniatures.picture(height, width)
    whole = reference.activations(reference.Vgg(TENSORS), picture)
    found = tiles.activations(miniatures.network(TENSORS), picture, (*STYLE, *CONTENT), tiling)
    for layer in (*STYLE, *CONTENT):
        assert reference.relative_error(found[layer], whole[layer]) < 1e-12


def test_a_metric_measures_the_distance_of_mapped_features() -> None:
    draw = torch.Generator().manual_seed(5)
    affine = torch.randn(11, 4, generator=draw, dtype=torch.float64)
    features, target = (miniatures.picture(9, 12, seed)[:, [0, 1, 2, 0]] for seed in (1, 2))
    leaf = features.clone().requires_grad_()
    distance = 3 * torch.einsum("tc,nchw->nthw", affine, leaf - target).pow(2).sum()
    found = ContentTarget(target, 3.0, affine.T @ affine)
    assert float(found.distance(features)) == pytest.approx(float(distance.detach()), rel=1e-12)
    (gradient,) = torch.autograd.grad(distance, leaf)
    assert reference.relative_error(found.gradient(features), gradient) < 1e-12


def test_a_content_target_is_compared_row_by_row() -> None:
    features, target = miniatures.picture(10, 6, 1), ContentTarget(miniatures.picture(10, 6, 2), 2.0)
    parts = target.distance(features[:, :, :4]) + target.distance(features[:, :, 4:], first=4)
    assert float(parts) == pytest.approx(float(target.distance(features)), rel=1e-12)
    assert torch.equal(target.gradient(features[:, :, 4:], first=4), target.gradient(features)[:, :, 4:])


# ── What bands are ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(height=st.integers(1, 10_000), rows=st.integers(1, 2_000).map(lambda half: 2 * half))
def test_bands_cover_every_row_once(height: int, rows: int) -> None:
    found = list(tiles.bands(height, rows))
    assert found[0][0] == 0 and found[-1][1] == height
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(first % 2 == 0 for first, _ in found), "a pooling window may not lie in two bands"
    assert all(last - first == rows for first, last in found[:-1])
    assert len(found) == 1 or rows / 2 < found[-1][1] - found[-1][0] <= 1.5 * rows


def test_the_picture_and_the_targets_are_left_alone() -> None:
    picture = miniatures.picture(64, 48)
    wanted = objective(picture)
    before = picture.clone(), {layer: target.features.clone() for layer, target in wanted.content.items()}
    for keep in (True, False):
        tiles.loss_and_gradient(miniatures.network(TENSORS), picture, wanted, (BlockTiling(10, keep),))
    assert torch.equal(picture, before[0])
    assert all(torch.equal(wanted.content[layer].features, value) for layer, value in before[1].items())


@pytest.mark.parametrize("style_weight", [0.0, 1.0, 2.5])
def test_weights_scale_the_gradient_and_not_the_reported_losses(style_weight: float) -> None:
    picture = miniatures.picture(48, 40)
    wanted = objective(picture)

    def evaluated(style: float, content: float) -> tiles.Evaluation:
        weighted = Objective(
            wanted.style_loss, STYLE, style_weight=style, content=wanted.content, content_weight=content
        )
        return tiles.loss_and_gradient(miniatures.network(TENSORS), picture, weighted)

    style_only, content_only, both = evaluated(1, 0), evaluated(0, 1), evaluated(style_weight, 0.5)
    assert both.style == style_only.style and both.content == content_only.content
    assert reference.relative_error(both.gradient, style_weight * style_only.gradient + 0.5 * content_only.gradient) < (
        1e-10
    )


def test_an_unknown_layer_is_refused() -> None:
    network = miniatures.network(miniatures.vgg(4))
    with pytest.raises(WeightsError, match="relu4_1"):
        tiles.grams(network, miniatures.picture(32, 32), ("relu4_1",))


# ── Parts of a picture ───────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25)
@given(
    height=st.integers(48, 120),
    cuts=st.sets(st.integers(1, 7), max_size=4),
    tiling=TILINGS,
    padding=st.sampled_from(["replicate", "reflect", "zeros"]),
    pooling=st.sampled_from(["max", "average"]),
)
def test_parts_of_a_picture_add_up_to_it(
    height: int, cuts: set[int], tiling: Tiling, padding: Padding, pooling: Pooling
) -> None:
    network = miniatures.network(TENSORS, pooling=pooling, padding=padding)
    picture = miniatures.picture(height, 35)
    wanted = objective(picture)
    edges = [0, *sorted(16 * cut for cut in cuts if 16 * cut + 16 <= height), height]
    parts = [tiles.Part(first, last, height) for first, last in pairwise(edges)]
    rows = [tiles.rows_needed(network, wanted.layers, part) for part in parts]
    passes = [
        tiles.Passes(network, picture[:, :, first:last], wanted.part(part), tiling, part)
        for part, (first, last) in zip(parts, rows, strict=True)
    ]
    found = [one.statistics() for one in passes]
    sums = {layer: torch.stack([one.grams[layer] for one in found]).sum(0) for layer in STYLE}
    positions = {layer: sum(one.positions[layer] for one in found) for layer in STYLE}
    statistics = tiles.Statistics(sums, positions, sum(one.content for one in found))
    style, derivatives = tiles.style_derivatives(wanted, statistics)
    gradient = torch.zeros_like(picture)
    for one, (first, last) in zip(passes, rows, strict=True):
        gradient[:, :, first:last] += one.gradient(derivatives, wanted.content_weight)
    vgg = reference.Vgg(TENSORS, pooling=pooling, padding=padding)
    expected_style, expected_content, derivative = expected(vgg, picture)
    assert style == pytest.approx(expected_style, rel=1e-11)
    assert statistics.content == pytest.approx(expected_content, rel=1e-11)
    assert reference.relative_error(gradient, derivative) < 1e-11


def test_a_part_needs_the_rows_that_its_layers_see() -> None:
    network = miniatures.network(TENSORS)
    for layer in (*STYLE, *CONTENT):
        block = block_of(layer)
        part = tiles.Part(160, 192, 400)
        first, last = tiles.rows_needed(network, (layer,), part)
        picture = miniatures.picture(400, 33).requires_grad_()
        features = reference.activations(reference.Vgg(TENSORS, pooling="average"), picture)[layer]
        counted = features[:, :, part.first >> block : part.last >> block]
        (influence,) = torch.autograd.grad(counted.square().sum(), picture)
        seen = influence.abs().sum((0, 1, 3)).nonzero().flatten()
        assert (first, last) == (int(seen.min()), int(seen.max()) + 1), layer
