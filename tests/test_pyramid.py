"""The geometry of the levels, and the summed loss and its gradient against a plain float64 reference."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core import config, tiles
from core.config import Settings
from core.errors import WeightsError
from core.features import Network
from core.pyramid import Pyramid, level_size
from core.tiles import BlockTiling
from tests import miniatures, reference
from tests.reference import Reference, Vgg

STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
CONTENT = ("relu4_2",)
TENSORS = miniatures.vgg()


# ── Geometry: width × height of the levels 0 to 3 ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("original", "sizes"),
    [
        ((3072, 2048), [(384, 256), (768, 512), (1536, 1024), (3072, 2048)]),
        ((300, 200), [(384, 256), (768, 512), (1536, 1024), (3072, 2048)]),
        ((2000, 3000), [(256, 384), (512, 768), (1024, 1536), (2048, 3072)]),
        ((1000, 1000), [(256, 256), (512, 512), (1024, 1024), (2048, 2048)]),
        ((2000, 100), [(5120, 256), (10240, 512), (20480, 1024), (40960, 2048)]),
        ((100, 2000), [(256, 5120), (512, 10240), (1024, 20480), (2048, 40960)]),
        ((1920, 1080), [(455, 256), (910, 512), (1820, 1024), (3640, 2048)]),
        ((10, 8), [(320, 256), (640, 512), (1280, 1024), (2560, 2048)]),
        ((1001, 1000), [(256, 256), (512, 512), (1024, 1024), (2048, 2048)]),
    ],
)
def test_sizes_of_the_levels(original: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> None:
    width, height = original
    assert [level_size((height, width), level)[::-1] for level in range(4)] == sizes


@given(height=st.integers(8, 20_000), ratio=st.floats(0.05, 20), level=st.integers(0, 6))
def test_every_level_halves_exactly_and_keeps_the_shape(height: int, ratio: float, level: int) -> None:
    size = (height, max(1, round(height * ratio)))
    found, coarsest = level_size(size, level), level_size(size, 0)
    assert min(found) == 256 * 2**level
    assert found == (coarsest[0] * 2**level, coarsest[1] * 2**level)
    assert abs(max(coarsest) - 256 * max(size) / min(size)) <= 0.5
    assert (found[0] >= found[1]) == (size[0] >= size[1]) or found[0] == found[1]


# ── The loss and its gradient ────────────────────────────────────────────────────────────────────────────────────────


def both(
    changes: Mapping[str, Any] = MappingProxyType({}),
    *,
    content: tuple[int, int] = (61, 67),
    styles: Sequence[Tensor] = (miniatures.picture(70, 95, seed=5),),
    tensors: Mapping[str, Tensor] = TENSORS,
    network: str = "vgg19-oxford",
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[Pyramid, Reference]:
    """The product's objective and the reference's, of one level and the whole network unless `changes` say else."""
    settings = config.parse({"levels": 0}).changed(changes)
    run = {"pooling": settings.pooling, "padding": settings.padding}
    original = miniatures.picture(*content, seed=4)
    ours = miniatures.network(tensors, network, dtype=dtype, **run)
    product = Pyramid(ours, settings, original.to(dtype), [style.to(dtype) for style in styles], **options)
    layers = settings.loss.style_layers, settings.loss.content_layers
    style, content_layers = (
        default if asked == "auto" else asked for asked, default in zip(layers, (STYLE, CONTENT), strict=True)
    )
    return product, Reference(Vgg(tensors, network, **run), settings, original, styles, style, content_layers)


def start(product: Pyramid, finest: int | None = None) -> Tensor:
    """A picture of the size of the level `finest` that is neither the content nor a style."""
    level = product.levels[-1] if finest is None else product.levels[finest]
    return miniatures.picture(*level.size, seed=6)


def assert_agree(product: Pyramid, expected: Reference, finest: int | None = None, tolerance: float = 1e-9) -> None:
    picture = start(product, finest)
    value, gradient = expected.loss_and_gradient(picture, finest)
    found = product.evaluate(picture, finest)
    assert found.total == pytest.approx(value, rel=tolerance)
    assert reference.relative_error(found.gradient, gradient) < tolerance
    for term in found.levels:
        terms = expected.terms(picture, term.level)
        assert term.style == pytest.approx(float(terms.style), rel=tolerance)
        if expected.settings.loss.tv_weight:
            assert term.tv == pytest.approx(float(terms.tv), rel=tolerance)
        if expected.settings.loss.content_weight:
            assert term.content == pytest.approx(float(terms.content), rel=tolerance)


@pytest.mark.parametrize(
    "content", [(61, 87), (87, 61), (50, 50), (256, 361), (40, 131), (999, 1500), (20, 140)], ids=str
)
def test_sizes_and_shapes(content: tuple[int, int]) -> None:
    assert_agree(*both(content=content))


@pytest.mark.parametrize("normalisation", ["target", "gatys"])
@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"content_weight": 0.0},
        {"style_weight": 0.0, "content_weight": 1.0},
        {"tv_weight": 3.0},
        {"content_weight": 0.0, "style_weight": 0.0, "tv_weight": 1.0},
        {"style_layers": ["conv1_2", "relu2_2", "conv4_3"], "content_layers": ["conv4_2", "relu2_2"]},
        {"style_layers": ["relu1_1"], "content_layers": ["relu1_1"]},
        {"style_layers": ["conv3_1", "relu3_1"], "content_layers": ["conv3_1", "relu3_1"]},
    ],
    ids=["defaults", "no content", "no style", "smooth", "smooth alone", "other layers", "one layer", "conv and relu"],
)
def test_terms_and_layers(loss: dict[str, Any], normalisation: str) -> None:
    assert_agree(*both({"loss": loss | {"normalisation": normalisation}}))


@pytest.mark.parametrize("normalisation", ["target", "gatys"])
def test_a_network_with_torchvisions_input(normalisation: str) -> None:
    assert_agree(*both({"loss": {"normalisation": normalisation}}, network="vgg19"))


@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_pooling_and_padding(pooling: str, padding: str) -> None:
    assert_agree(*both({"pooling": pooling, "padding": padding}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"all_levels": False},
        {"loss": {"level_weights": [0.3, 2.0], "tv_weight": 1.0}},
        {"loss": {"level_weights": [0.0, 1.0]}},
    ],
    ids=["all", "the finest alone", "weighted", "the coarsest weighs nothing"],
)
def test_two_levels(changes: dict[str, Any]) -> None:
    assert_agree(*both({"levels": 1} | changes))


def test_the_last_level_weight_holds_for_all_finer_levels() -> None:
    product, _ = both(
        {"levels": 2, "loss": {"level_weights": [5.0, 0.25], "content_weight": 0.01}}, tensors=miniatures.vgg(1)
    )
    found = product.evaluate(start(product))
    unweighted = [0.01 * term.content + term.style for term in found.levels]
    assert found.total == pytest.approx(5 * unweighted[0] + 0.25 * unweighted[1] + 0.25 * unweighted[2], rel=1e-12)


def test_a_coarse_picture_is_held_against_the_coarse_levels() -> None:
    product, expected = both({"levels": 1})
    assert [term.level for term in product.evaluate(start(product, 0), 0).levels] == [0]
    assert_agree(product, expected, finest=0)


def test_several_styles_weigh_the_same() -> None:
    styles = [miniatures.picture(80, 60, seed=7), miniatures.picture(300, 310, seed=8), miniatures.picture(64, 64)]
    assert_agree(*both(styles=styles))


def test_classical_is_the_papers_formula() -> None:
    # Gatys et al. 2015, equations 1, 4 and 5 as they are printed, for a style of the picture's own size.
    product, expected = both({"loss": {"normalisation": "gatys", "content_weight": 1.0, "style_weight": 1000.0}})
    picture = start(product)
    found = reference.activations(expected.vgg, picture)
    content = reference.activations(expected.vgg, reference.at_level(expected.content, 0))["relu4_2"]
    content_loss = 0.5 * (found["relu4_2"] - content).pow(2).sum()
    style_loss = torch.zeros((), dtype=torch.float64)
    for layer in STYLE:
        channels, positions = found[layer].shape[1], found[layer].shape[2] * found[layer].shape[3]
        target = positions * reference.style_statistics(expected.vgg, expected.styles[0], 0, [layer])[layer]
        squared = (reference.gram(found[layer]) - target).pow(2).sum()
        style_loss += squared / (4 * channels**2 * positions**2) / 5
    assert product.evaluate(picture).total == pytest.approx(float(content_loss + 1000 * style_loss), rel=1e-9)


def test_in_float32() -> None:
    product, expected = both({"levels": 1, "loss": {"tv_weight": 1.0}}, dtype=torch.float32)
    picture = start(product)
    value, gradient = expected.loss_and_gradient(picture)
    found = product.evaluate(picture.float())
    assert found.gradient.dtype == torch.float32
    assert found.total == pytest.approx(value, rel=1e-5)
    # Where two pixels of a pooling window are nearly equal, rounding decides which of them receives the gradient.
    assert reference.relative_error(found.gradient, gradient) < 3e-3


def test_in_16_bit_the_loss_and_its_direction_stay() -> None:
    product, expected = both({"levels": 1}, dtype=torch.float32)
    rounded = Pyramid(
        miniatures.network(TENSORS, dtype=torch.bfloat16),
        expected.settings,
        expected.content.float(),
        [style.float() for style in expected.styles],
    )
    picture = start(product)
    value, gradient = expected.loss_and_gradient(picture)
    found = rounded.evaluate(picture.float())
    assert found.total == pytest.approx(value, rel=0.05)
    assert torch.cosine_similarity(found.gradient.double().flatten(), gradient.flatten(), 0) > 0.9


def test_the_gradient_is_what_a_small_step_changes() -> None:
    product, _ = both({"levels": 1, "loss": {"tv_weight": 1.0}, "pooling": "average"})
    picture = start(product)
    towards = torch.randn(picture.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-8  # small, because the loss has a kink wherever a rectifier opens
    ahead, behind = (product.evaluate(picture + sign * step * towards).total for sign in (1, -1))
    slope = float((product.evaluate(picture).gradient * towards).sum())
    assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("level", [0, 1])
def test_the_content_itself_has_no_content_loss(level: int) -> None:
    product, expected = both({"levels": level})
    found = product.evaluate(reference.at_level(expected.content, level))
    assert found.levels[level].content == pytest.approx(0, abs=1e-20)


def test_bands_change_nothing() -> None:
    tilings = [(BlockTiling(50, False),), (BlockTiling(120, False), BlockTiling(64, True))]
    assert_agree(*both({"levels": 1}, tilings=tilings))


def test_pictures_and_settings_are_left_alone() -> None:
    product, expected = both({"levels": 1})
    picture = start(product)
    before = picture.clone(), expected.content.clone(), expected.styles[0].clone()
    first, second = product.evaluate(picture), product.evaluate(picture)
    assert torch.equal(picture, before[0])
    assert torch.equal(expected.content, before[1]) and torch.equal(expected.styles[0], before[2])
    assert first.total == second.total and torch.equal(first.gradient, second.gradient)


# ── Compact networks ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("normalisation", ["target", "gatys"])
def test_a_compact_network_compares_mapped_features(normalisation: str) -> None:
    layers = {"relu1_1": 4, "relu2_1": 6, "relu3_1": 8, "relu4_1": 8, "relu5_1": 8, "relu4_2": 8}
    tensors = miniatures.with_metric(TENSORS, layers)
    changes = {"loss": {"normalisation": normalisation, "content_weight": 1.0}}
    # Metrics are kept in float32, whatever the network computes in.
    assert_agree(*both(changes, tensors=tensors, network="compact", dtype=torch.float64), tolerance=1e-5)


def test_layers_without_a_metric_are_compared_as_they_are() -> None:
    tensors = miniatures.with_metric(TENSORS, {"relu1_1": 4, "relu3_1": 8})
    assert_agree(*both(tensors=tensors, network="compact", dtype=torch.float64), tolerance=1e-5)


def test_a_compact_network_in_float32() -> None:
    layers = {"relu1_1": 4, "relu2_1": 6, "relu3_1": 8, "relu4_1": 8, "relu5_1": 8, "relu4_2": 8}
    product, expected = both(tensors=miniatures.with_metric(TENSORS, layers), network="compact", dtype=torch.float32)
    picture = start(product)
    value, gradient = expected.loss_and_gradient(picture)
    found = product.evaluate(picture.float())
    assert found.total == pytest.approx(value, rel=1e-4)
    assert reference.relative_error(found.gradient, gradient) < 1e-3


# ── Refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["style_layers", "content_layers"])
def test_a_layer_that_is_not_there_is_refused(key: str) -> None:
    with pytest.raises(WeightsError, match="relu5_1"):
        both({"loss": {key: ["relu5_1"]}}, tensors=miniatures.vgg(8))


def test_default_settings_run_on_any_depth() -> None:
    for depth in (1, 2, 3, 4, 5, 8, 9, 10, 13, 14, 16):
        original = miniatures.picture(30, 40)
        product = Pyramid(miniatures.network(miniatures.vgg(depth)), Settings(levels=0), original, [original])
        assert 0 < product.evaluate(start(product)).total < 1000


# ── Styles seen before ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_style_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    look = tiles.grams

    def counted(network: Network, picture: Tensor, layers: tuple[str, ...], **options: Any) -> dict[str, Tensor]:
        seen.append((picture.shape[2], picture.shape[3]))
        return look(network, picture, layers, **options)

    monkeypatch.setattr(tiles, "grams", counted)
    content, style = miniatures.picture(40, 60), miniatures.picture(50, 44, seed=77)
    chosen = config.load(changes={"levels": 1})
    network = miniatures.network(miniatures.vgg(8, seed=5))
    first = Pyramid(network, chosen, content, [style])
    looks = len(seen)
    assert looks == 2
    again = Pyramid(network, chosen, miniatures.picture(60, 40), [style.clone()])
    assert len(seen) == looks
    assert again.levels[1].statistics[0] is first.levels[1].statistics[0]

    Pyramid(network, chosen, content, [style.flip(3)])
    assert len(seen) == 2 * looks
    Pyramid(miniatures.network(miniatures.vgg(8, seed=5), padding="zeros"), chosen, content, [style])
    assert len(seen) == 3 * looks
