"""Masks: the rule where they meet, guided sums against plain formulas in float64, bands against the whole picture."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core import config, guides, planning, tiles
from core.config import OptimizerSettings
from core.errors import UserError
from core.features import block_of
from core.guides import Guidance, Protected
from core.parametrisation import parametrise
from core.pyramid import Pyramid, style_size
from core.shards import Shards, ThreadWorker
from core.tiles import BlockTiling, ContentTarget, Objective, Tiling
from core.weights import Weights
from tests import miniatures, reference

TENSORS = miniatures.vgg()
VGG = reference.Vgg(TENSORS)
STYLE = ("relu1_1", "conv2_1", "relu3_1", "relu4_1", "relu5_1")
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


def mask(height: int, width: int, seed: int) -> Tensor:
    """Random blots between 0 and 1, much of it exactly 0 or 1."""
    draw = torch.Generator().manual_seed(seed)
    blots = torch.rand(1, 1, 4, 5, generator=draw)
    return (F.interpolate(blots, size=(height, width), mode="bilinear") * 3 - 1).clamp(0, 1)


# ── The rule ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def share(masks: Sequence[Tensor | None], weights: Sequence[float]) -> list[float]:
    """The styles' shares in the middle of a picture of 20 × 20."""
    found = Guidance(tuple(masks)).shares((20, 20), weights)
    assert float(found.min()) >= 0 and float(found.sum(0).max()) <= 1 + 1e-6
    return [float(value) for value in found[:, 0, 10, 10]]


def plane(value: float) -> Tensor:
    return torch.full((1, 1, 9, 9), value)


@pytest.mark.parametrize(
    ("masks", "weights", "expected"),
    [
        ([None], [3], [1]),
        ([None, None], [1, 3], [0.25, 0.75]),
        ([plane(1), plane(0)], [1, 3], [1, 0]),
        ([plane(0.25), plane(0.75)], [1, 1], [0.25, 0.75]),
        ([plane(0.3)], [1], [0.3]),
        ([plane(0.2), plane(0.2)], [1, 3], [0.1, 0.3]),
        ([plane(1), plane(1)], [1, 1], [0.5, 0.5]),
        ([plane(1), plane(0.5)], [1, 1], [2 / 3, 1 / 3]),
        ([None, plane(1)], [1, 0], [1, 0]),
        ([plane(0), plane(1)], [1, 0], [0, 0]),
        ([plane(0), plane(0)], [1, 1], [0, 0]),
    ],
)
def test_styles_share_a_place_by_weight_times_mask(
    masks: Sequence[Tensor | None], weights: Sequence[float], expected: Sequence[float]
) -> None:
    assert share(masks, weights) == pytest.approx(expected)


def test_a_mask_is_stretched_over_the_picture() -> None:
    left = torch.zeros(1, 1, 30, 200)
    left[..., :100] = 1
    shares = Guidance((left,)).shares((64, 48), [1])[0, 0]
    assert float(shares[:, :23].min()) > 1 - 1e-6 and float(shares[:, 25:].max()) == 0


def test_a_protected_region_belongs_to_no_style_and_has_a_soft_rim() -> None:
    protect = torch.zeros(1, 1, 256, 256)
    protect[..., :128] = 1
    guidance = Guidance((None,), protect)
    kept, shares = guidance.kept((256, 256))[0, 0, 100], guidance.shares((256, 256), [1])[0, 0, 100]
    assert float(kept[:112].min()) > 1 - 1e-6 and float(shares[:112].max()) < 1e-6
    assert float(kept[128:].max()) == 0 and float(shares[144:].min()) > 1 - 1e-6
    assert float(kept.diff().abs().max()) < 0.3, "there should be no hard seam"
    assert float((kept.diff() > 0).sum()) == 0
    grey = Guidance((None,), 0.5 * torch.ones_like(protect))
    assert float(grey.kept((256, 256)).max()) == 0, "grey protects by weight alone"


@pytest.mark.parametrize("value", [0.0, 1e-6])
def test_an_empty_mask_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="mask of style 2 is empty") as caught:
        guides.check(Guidance((None, plane(value))))
    assert caught.value.remedy
    with pytest.raises(UserError, match="what is protected is empty"):
        guides.check(Guidance((None,), plane(value)))
    with pytest.raises(UserError, match="nothing left to paint"):
        guides.check(Guidance((None,), plane(1.0)))


def test_maps_come_down_to_a_layer_by_averages() -> None:
    fine = mask(37, 50, 1).double()
    expected = torch.stack(
        [fine[0, 0, 4 * row : 4 * row + 4, 4 * c : 4 * c + 4].mean() for row in range(9) for c in range(12)]
    )
    torch.testing.assert_close(guides.at_block(fine, 2), expected.view(1, 1, 9, 12))


# ── Guided sums ──────────────────────────────────────────────────────────────────────────────────────────────────────


def guided_gram(features: Tensor, guide: Tensor) -> Tensor:
    """Gatys et al. 2017, equations 3 and 4: features times the guidance channel, whose square is `guide`."""
    return reference.gram(features * guide.sqrt())


TILINGS = st.lists(
    st.builds(BlockTiling, rows=st.integers(1, 24).map(lambda half: 2 * half), keep=st.booleans()),
    min_size=1,
    max_size=5,
).map(tuple)


def assert_exact(picture: Tensor, tiling: Tiling, *, regions: int, loss: float, gradient: float) -> None:
    """Two losses that depend on every region's Gram matrices, and a guided content: bands against plain formulas."""
    height, width = picture.shape[2:]
    masks = torch.cat([mask(height, width, seed) for seed in range(regions)]).double()
    maps = {layer: guides.at_block(masks, block_of(layer)) for layer in STYLE}
    other = reference.activations(VGG, miniatures.picture(height, width, seed=2))
    emphasis = 1 + 4 * guides.at_block(mask(height, width, 9).double(), 3)

    leaf = picture.double().requires_grad_()
    found = reference.activations(VGG, leaf)
    terms = [
        (guided_gram(found[layer], maps[layer][number]) - number - 1).pow(2).sum() / maps[layer][number].sum() ** 2
        for layer in STYLE
        for number in range(regions)
    ]
    style = torch.stack(terms).sum()
    content = 3 * (emphasis * (found["relu4_2"] - other["relu4_2"]).pow(2)).sum()
    (derivative,) = torch.autograd.grad(style + 0.3 * content, leaf)

    def style_loss(sums: Any, positions: Any) -> Tensor:
        return torch.stack(
            [
                (sums[layer][number] - number - 1).pow(2).sum() / maps[layer][number].sum().to(sums[layer]) ** 2
                for layer in STYLE
                for number in range(regions)
            ]
        ).sum()

    target = ContentTarget(other["relu4_2"].to(picture), 3.0, guide=emphasis.to(picture))
    wanted = Objective(
        style_loss,
        STYLE,
        content={"relu4_2": target},
        content_weight=0.3,
        guides={layer: value[:, 0].to(picture) for layer, value in maps.items()},
    )
    evaluated = tiles.loss_and_gradient(miniatures.network(TENSORS, dtype=picture.dtype), picture, wanted, tiling)
    assert evaluated.style == pytest.approx(float(style.detach()), rel=loss)
    assert evaluated.content == pytest.approx(float(content.detach()), rel=loss)
    assert reference.relative_error(evaluated.gradient, derivative) < gradient


@settings(max_examples=15)
@given(height=st.integers(32, 100), width=st.integers(32, 60), tiling=TILINGS, regions=st.integers(1, 3))
def test_guided_bands_of_any_shape(height: int, width: int, tiling: Tiling, regions: int) -> None:
    assert_exact(miniatures.picture(height, width), tiling, regions=regions, loss=1e-10, gradient=1e-10)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("rows", [2, 34])
def test_guided_bands_in_float32(rows: int, keep: bool) -> None:
    picture = miniatures.picture(101, 67, dtype=torch.float32)
    assert_exact(picture, (BlockTiling(rows, keep),), regions=2, loss=1e-5, gradient=1e-4)


@pytest.mark.parametrize("rows", [6, 1 << 20])
def test_16_bit_guided_sums_stay_near_the_exact_ones(rows: int) -> None:
    picture = miniatures.picture(96, 64, dtype=torch.float32)
    masks = torch.cat([mask(96, 64, seed) for seed in (1, 2)])
    maps = {layer: guides.at_block(masks, block_of(layer))[:, 0] for layer in LAYERS}

    def found(dtype: torch.dtype) -> tiles.Evaluation:
        def style_loss(sums: Any, positions: Any) -> Tensor:
            scaled = [sums[layer] / maps[layer].sum((1, 2))[:, None, None].to(sums[layer]) for layer in LAYERS]
            return torch.stack([gram.square().sum() for gram in scaled]).sum()

        wanted = Objective(style_loss, LAYERS, guides={layer: value.to(dtype) for layer, value in maps.items()})
        network = miniatures.network(TENSORS, dtype=dtype)
        exact = dtype == torch.float64
        return tiles.loss_and_gradient(
            network, picture.double() if exact else picture, wanted, (BlockTiling(rows, False),)
        )

    rough, exact = found(torch.bfloat16), found(torch.float64)
    assert rough.style == pytest.approx(exact.style, rel=0.05)
    assert torch.cosine_similarity(rough.gradient.flatten().double(), exact.gradient.flatten(), 0) > 0.97


def test_a_guided_content_target_in_a_metric() -> None:
    affine = torch.randn(11, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    features, target = (miniatures.picture(9, 12, seed)[:, [0, 1, 2, 0]] for seed in (1, 2))
    guide = 5 * mask(9, 12, 1).double()
    leaf = features.clone().requires_grad_()
    distance = 3 * (guide * torch.einsum("tc,nchw->nthw", affine, leaf - target).pow(2)).sum()
    found = ContentTarget(target, 3.0, affine.T @ affine, guide=guide)
    assert float(found.distance(features)) == pytest.approx(float(distance.detach()), rel=1e-12)
    (gradient,) = torch.autograd.grad(distance, leaf)
    assert reference.relative_error(found.gradient(features), gradient) < 1e-12


# ── The objective of a run ───────────────────────────────────────────────────────────────────────────────────────────


CONTENT = miniatures.picture(61, 67, seed=4)
STYLES = (miniatures.picture(70, 95, seed=5), miniatures.picture(90, 80, seed=6))


def pyramid(changes: dict[str, Any], guidance: Guidance | None = None, *, metric: bool = False) -> Pyramid:
    tensors = miniatures.with_metric(TENSORS, {"relu1_1": 4, "relu3_1": 8}) if metric else TENSORS
    network = miniatures.network(tensors, "compact" if metric else "vgg19-oxford")
    chosen = config.parse({"levels": 0}).changed(changes)
    return Pyramid(network, chosen, CONTENT, STYLES, guidance=guidance)


def expected_style(picture: Tensor, weights: Sequence[float], masks: Sequence[Tensor], vgg: reference.Vgg) -> float:
    """Every style's distance in its own region, counted by area: by plain formulas."""
    found = reference.activations(vgg, picture)
    total = 0.0
    weighed = torch.stack([w * m for w, m in zip(weights, masks, strict=True)])
    shares = torch.stack(list(masks)).sum(0).clamp_max(1) * weighed / weighed.sum(0).clamp_min(1e-30)
    for style, region in zip(STYLES, shares, strict=True):
        targets = reference.style_statistics(vgg, style, 0, LAYERS)
        terms = []
        for layer in LAYERS:
            guide = F.avg_pool2d(region, 2 ** block_of(layer))
            value = guided_gram(reference.mapped(vgg, layer, found[layer]), guide) / guide.sum()
            terms.append((value - targets[layer]).pow(2).sum() / targets[layer].pow(2).sum())
        total += float(region.mean() * torch.stack(terms).mean())
    return total


@pytest.mark.parametrize("metric", [False, True], ids=["plain", "in a teacher's metric"])
def test_styles_in_their_regions(metric: bool) -> None:
    masks = (mask(256, 281, 1), mask(256, 281, 2))
    product = pyramid({"styles": [{"weight": 1}, {"weight": 2}]}, Guidance(masks), metric=metric)
    picture = miniatures.picture(256, 281, seed=7)
    tensors = miniatures.with_metric(TENSORS, {"relu1_1": 4, "relu3_1": 8}) if metric else TENSORS
    vgg = reference.Vgg(tensors, "compact" if metric else "vgg19-oxford")
    wanted = expected_style(picture, [1, 2], [m.double() for m in masks], vgg)
    assert product.evaluate(picture).levels[0].style == pytest.approx(wanted, rel=1e-6)


def test_masks_that_cover_everything_change_nothing() -> None:
    picture = miniatures.picture(256, 281, seed=7)
    plain = pyramid({"styles": [{"weight": 1}, {"weight": 2}]}).evaluate(picture)
    guided = pyramid({"styles": [{"weight": 1}, {"weight": 2}]}, Guidance((None, torch.ones(1, 1, 5, 5)))).evaluate(
        picture
    )
    assert guided.total == pytest.approx(plain.total, rel=1e-6)
    assert reference.relative_error(guided.gradient, plain.gradient) < 1e-6


def test_without_masks_the_objective_has_no_guides() -> None:
    assert not pyramid({}, Guidance((None, None))).levels[0].objective.guides


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (2, 0)])
def test_weights_of_styles_are_proportions(weights: tuple[float, float]) -> None:
    picture = miniatures.picture(256, 281, seed=7)
    found = pyramid({"styles": [{"weight": weight} for weight in weights]}).evaluate(picture).levels[0].style
    alone = [
        Pyramid(miniatures.network(TENSORS), config.parse({"levels": 0}), CONTENT, [style]).evaluate(picture)
        for style in STYLES
    ]
    parts = [weight / sum(weights) * one.levels[0].style for weight, one in zip(weights, alone, strict=True)]
    assert found == pytest.approx(sum(parts), rel=1e-9)


def test_new_weights_are_those_of_a_new_objective() -> None:
    masks = Guidance((mask(40, 40, 1), None), mask(30, 30, 3))
    changes = {
        "loss": {
            "content_weight": 0.3,
            "style_weight": 0.7,
            "tv_weight": 1.0,
            "level_weights": [2],
            "protect_weight": 3,
        },
        "styles": [{"weight": 5}, {"weight": 1}],
    }
    picture = miniatures.picture(256, 281, seed=7)
    for before in ({}, {"loss": {"content_weight": 0}}):
        old = pyramid(before, masks)
        new = old.weighted(old.settings.changed(changes))
        fresh = pyramid(dict(changes), masks)
        assert new.evaluate(picture).total == pytest.approx(fresh.evaluate(picture).total, rel=1e-12)
        assert old.evaluate(picture).total != pytest.approx(fresh.evaluate(picture).total, rel=1e-3)


# ── A style's scale ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("size", "level", "scale", "shorter"),
    [
        ((2000, 3000), 0, 1.0, 256),
        ((2000, 3000), 0, 2.0, 512),
        ((2000, 3000), 1, 2.0, 1024),
        ((2000, 3000), 2, 2.0, 2000),  # beyond the style's own resolution there is only blur
        ((2000, 3000), 3, 2.0, 2048),  # where the pyramid itself enlarges it, the scale adds nothing
        ((2000, 3000), 0, 0.5, 128),
        ((2000, 3000), 0, 0.25, 128),  # fewer would leave the deepest layers without statistics
        ((2000, 3000), 1, 0.25, 128),
        ((2000, 3000), 2, 0.25, 256),
        ((100, 150), 0, 4.0, 256),
    ],
)
def test_sizes_of_scaled_styles(size: tuple[int, int], level: int, scale: float, shorter: int) -> None:
    height, width = style_size(size, level, scale)
    assert height == shorter
    assert width / height == pytest.approx(1.5, rel=0.01)


def test_a_scaled_style_has_the_statistics_of_the_enlarged_picture() -> None:
    large = miniatures.picture(600, 700, seed=3)
    product = Pyramid(
        miniatures.network(TENSORS), config.parse({"levels": 0, "styles": [{"scale": 2}]}), CONTENT, [large]
    )
    picture = reference.resize(large, (512, 598)).clamp(0, 1)[:, :, 8:-8, 8:-8]
    found = reference.activations(VGG, picture)
    for layer in LAYERS:
        wanted = reference.gram_per_position(found[layer])
        assert reference.relative_error(product.levels[0].statistics[0][layer], wanted) < 1e-9


# ── The protected picture ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_protected_pictures_gradient_is_autograds() -> None:
    start, content, target = (miniatures.picture(24, 30, seed) for seed in (1, 2, 3))
    kept = mask(24, 30, 4).double()
    rule = Protected(parametrise(OptimizerSettings(preconditioning=0), start), content, kept)
    variable = (0.1 * torch.randn(start.shape, dtype=torch.float64)).requires_grad_()
    picture = rule.picture(variable)
    torch.testing.assert_close(picture[kept.expand_as(picture) == 1], content[kept.expand_as(picture) == 1])
    (expected,) = torch.autograd.grad((picture - target).pow(2).sum(), variable)
    torch.testing.assert_close(rule.pull_back(variable.detach(), 2 * (picture.detach() - target)), expected)


@pytest.mark.parametrize("metric", [False, True], ids=["plain", "in a teacher's metric"])
def test_regions_over_several_workers_are_those_of_one(metric: bool) -> None:
    """Under new weights too, by which the regions change."""
    guidance = Guidance((mask(40, 40, 1), None), mask(30, 30, 3))
    alone = pyramid({}, guidance, metric=metric)
    workers = [ThreadWorker(alone.network) for _ in range(2)]
    spread = Pyramid(alone.network, alone.settings, CONTENT, STYLES, guidance=guidance, shards=Shards(workers, parts=3))
    picture = miniatures.picture(256, 281, seed=7)
    try:
        for changes in ({}, {"styles": [{"weight": 5}], "loss": {"content_weight": 1.0, "protect_weight": 2.0}}):
            settings = alone.settings.changed(changes)
            ours, theirs = (one.weighted(settings).evaluate(picture) for one in (spread, alone))
            assert ours.total == pytest.approx(theirs.total, rel=1e-9)
            assert reference.relative_error(ours.gradient, theirs.gradient) < 1e-9
    finally:
        for worker in workers:
            worker.close()


def test_masks_are_planned_for() -> None:
    """Maps of every region at the layers, and in each evaluation the weighted features beside the plain ones."""
    weights_of = Weights("vgg19-oxford", TENSORS, "0" * 64, {})
    chosen = config.parse({"levels": 2})
    plain, guided = (
        planning.plan(chosen, (600, 900), [(500, 500)] * 2, torch.device("cpu"), weights_of, regions).memory_bytes
        for regions in (0, 2)
    )
    finest = 1024 * 1536
    maps = 4 * 2 * finest * (1 + 1 / 4 + 1 / 16 + 1 / 64 + 1 / 256) * (1 + 1 / 4 + 1 / 16)
    assert plain + maps < guided < plain + 2 * maps + 3 * 4 * 4 * finest
