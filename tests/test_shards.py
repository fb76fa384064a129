"""A level that is spread over workers against the same level on one device, from which rounding alone may differ."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from core import config, losses, shards, tiles
from core.features import Network, Padding, Pooling
from core.shards import Answer, Key, Shards, Slab, SpreadLevel, ThreadWorker
from core.tiles import WHOLE, BlockTiling, ContentTarget, Evaluation, Objective, Tiling
from core.transfer import Transfer
from tests import miniatures, reference

STYLE = ("relu1_1", "conv2_1", "relu3_1", "relu4_1", "relu5_1")
CONTENT = ("conv1_2", "relu4_2")
TENSORS = miniatures.vgg()
BANDS: Tiling = (BlockTiling(6, False), BlockTiling(10, True), BlockTiling(4, False))


def objective(network: Network, picture: Tensor, *, regions: int = 0) -> Objective:
    """Targets of other pictures; with `regions`, each style layer has a Gram matrix for each of them."""
    content = miniatures.picture(picture.shape[2], picture.shape[3], seed=2, dtype=picture.dtype)
    features = network.activations(content, CONTENT)
    draw = torch.Generator().manual_seed(3)
    layers = network.activations(content, STYLE)
    grams = {layer: 2 * losses.gram(found) / found[0, 0].numel() for layer, found in layers.items()}
    shapes = {layer: (regions, *found.shape[2:]) for layer, found in layers.items()}
    guides = {layer: torch.rand(shape, generator=draw, dtype=torch.float64) for layer, shape in shapes.items()}

    def style_loss(sums: Mapping[str, Tensor], positions: Mapping[str, int]) -> Tensor:
        found = {layer: sums[layer] / positions[layer] for layer in STYLE}
        return torch.stack([losses.relative_squared_distance(found[n], grams[n]) for n in STYLE]).sum()

    targets = {layer: ContentTarget(value, 1 / value.numel()) for layer, value in features.items()}
    if regions:
        protected = torch.rand(1, 1, *features["relu4_2"].shape[2:], generator=draw, dtype=torch.float64)
        targets["relu4_2"] = replace(targets["relu4_2"], guide=protected)
    return Objective(style_loss, STYLE, content=targets, content_weight=0.3, guides=guides if regions else {})


def spread(
    network: Network, picture: Tensor, wanted: Objective, *, parts: int, workers: int = 2, tiling: Tiling = WHOLE
) -> Evaluation:
    with several(network, workers) as team:
        level = SpreadLevel(Shards(team, parts), 0, picture.shape[2], network, tiling)
        return level.evaluate(picture, wanted)


@contextmanager
def several(network: Network, count: int) -> Iterator[list["Watched"]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Watched(network))) for _ in range(count)]


class Watched(ThreadWorker):
    """Remembers what it was given to hold."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.held: dict[Key, list[Slab]] = {}

    def hold(self, key: Key, slab: Slab) -> Answer[None]:
        self.held.setdefault(key, []).append(slab)
        return super().hold(key, slab)


def assert_same(found: Evaluation, expected: Evaluation, *, loss: float, gradient: float) -> None:
    assert found.style == pytest.approx(expected.style, rel=loss)
    assert found.content == pytest.approx(expected.content, rel=loss)
    assert found.gradient.dtype == expected.gradient.dtype
    assert reference.relative_error(found.gradient, expected.gradient) < gradient


# ── Against one device ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("padding", ["replicate", "reflect", "zeros"])
@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("parts", [1, 2, 3, 1000])
def test_any_number_of_parts(parts: int, pooling: Pooling, padding: Padding) -> None:
    network = miniatures.network(TENSORS, pooling=pooling, padding=padding)
    picture = miniatures.picture(117, 53)
    wanted = objective(network, picture)
    found = spread(network, picture, wanted, parts=parts, tiling=BANDS)
    assert_same(found, tiles.loss_and_gradient(network, picture, wanted), loss=1e-10, gradient=1e-10)


@pytest.mark.parametrize("tiling", [WHOLE, BANDS], ids=["whole", "bands"])
@pytest.mark.parametrize("parts", [2, 5])
def test_in_float32(parts: int, tiling: Tiling) -> None:
    network = miniatures.network(TENSORS, dtype=torch.float32)
    picture = miniatures.picture(211, 97, dtype=torch.float32)
    wanted = objective(network, picture)
    found = spread(network, picture, wanted, parts=parts, tiling=tiling)
    assert_same(found, tiles.loss_and_gradient(network, picture, wanted), loss=1e-5, gradient=1e-4)


@settings(max_examples=20)
@given(
    height=st.integers(32, 140),
    width=st.integers(32, 60),
    parts=st.integers(1, 12),
    workers=st.integers(1, 3),
    rows=st.integers(1, 24).map(lambda half: 2 * half),
    keep=st.booleans(),
    regions=st.integers(0, 2),
    padding=st.sampled_from(["replicate", "reflect", "zeros"]),
    pooling=st.sampled_from(["max", "average"]),
)
@example(height=47, width=33, parts=2, workers=3, rows=2, keep=True, regions=1, padding="reflect", pooling="max")
def test_any_shape(
    height: int,
    width: int,
    parts: int,
    workers: int,
    rows: int,
    keep: bool,
    regions: int,
    padding: Padding,
    pooling: Pooling,
) -> None:
    network = miniatures.network(TENSORS, pooling=pooling, padding=padding)
    picture = miniatures.picture(height, width)
    wanted = objective(network, picture, regions=regions)
    found = spread(network, picture, wanted, parts=parts, workers=workers, tiling=(BlockTiling(rows, keep),))
    assert_same(found, tiles.loss_and_gradient(network, picture, wanted), loss=1e-10, gradient=1e-10)


@pytest.mark.parametrize("depth", [1, 4, 10])
def test_networks_that_are_cut_short(depth: int) -> None:
    network = miniatures.network(miniatures.vgg(depth))
    picture = miniatures.picture(90, 41)
    layers = network.style_layers

    def style_loss(sums: Mapping[str, Tensor], positions: Mapping[str, int]) -> Tensor:
        return torch.stack([(sums[layer] / positions[layer]).square().sum() for layer in layers]).sum()

    wanted = Objective(style_loss, layers, with_ones=True)
    found = spread(network, picture, wanted, parts=4)
    assert_same(found, tiles.loss_and_gradient(network, picture, wanted), loss=1e-10, gradient=1e-10)


def test_how_many_workers_share_the_parts_changes_not_a_bit() -> None:
    network = miniatures.network(TENSORS, dtype=torch.float32)
    picture = miniatures.picture(150, 64, dtype=torch.float32)
    wanted = objective(network, picture)
    alone, *others = [spread(network, picture, wanted, parts=4, workers=workers) for workers in (1, 2, 3, 7)]
    for other in others:
        assert torch.equal(other.gradient, alone.gradient)
        assert (other.style, other.content) == (alone.style, alone.content)


# ── From one evaluation to the next ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def watched() -> Iterator[list[Watched]]:
    with several(miniatures.network(TENSORS), 2) as workers:
        yield workers


def test_targets_travel_once_and_changed_weights_hold_at_once(watched: list[Watched]) -> None:
    network = miniatures.network(TENSORS)
    wanted = objective(network, miniatures.picture(96, 48))
    level = SpreadLevel(Shards(watched, 2), 0, 96, network, WHOLE)
    for seed, (style, content) in enumerate([(1.0, 0.3), (1.0, 2.0), (0.0, 2.0), (3.0, 0.0)]):
        picture = miniatures.picture(96, 48, 10 + seed)
        steered = Objective(wanted.style_loss, STYLE, style, wanted.content, content)
        expected = tiles.loss_and_gradient(network, picture, steered)
        assert_same(level.evaluate(picture, steered), expected, loss=1e-10, gradient=1e-10)
    assert [len(slabs) for worker in watched for slabs in worker.held.values()] == [1, 1]


def test_other_targets_travel_too(watched: list[Watched]) -> None:
    network = miniatures.network(TENSORS)
    picture = miniatures.picture(96, 48)
    level = SpreadLevel(Shards(watched, 2), 0, 96, network, WHOLE)
    wanted = objective(network, picture)
    level.evaluate(picture, wanted)
    other = replace(wanted, content={"relu4_2": replace(wanted.content["relu4_2"], factor=3.0)})
    found = level.evaluate(picture, other)
    assert_same(found, tiles.loss_and_gradient(network, picture, other), loss=1e-10, gradient=1e-10)


def test_a_slab_carries_its_own_rows_of_the_targets_alone(watched: list[Watched]) -> None:
    network = miniatures.network(TENSORS)
    picture = miniatures.picture(128, 48)
    SpreadLevel(Shards(watched, 4), 0, 128, network, WHOLE).evaluate(picture, objective(network, picture, regions=2))
    slabs = [watched[number % 2].held[0, number][0] for number in range(4)]
    assert [slab.objective.content["relu4_2"].features.shape[2] for slab in slabs] == [4, 4, 4, 4]
    assert [slab.objective.guides["relu1_1"].shape[1] for slab in slabs] == [32, 32, 32, 32]
    assert [slab.rows[1] - slab.rows[0] for slab in slabs] == [32 + 70, 128, 128, 32 + 70]


def test_an_error_of_a_worker_reaches_the_run_and_the_next_evaluation_is_whole(watched: list[Watched]) -> None:
    network = miniatures.network(TENSORS)
    picture = miniatures.picture(96, 48)
    wanted = objective(network, picture)
    level = SpreadLevel(Shards(watched, 3), 0, 96, network, WHOLE)
    with pytest.raises(RuntimeError):
        level.evaluate(picture[:, :2], wanted)  # two channels are no picture
    expected = tiles.loss_and_gradient(network, picture, wanted)
    assert_same(level.evaluate(picture, wanted), expected, loss=1e-10, gradient=1e-10)


# ── A whole run ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("from_level", [0, 1, 2])
@pytest.mark.parametrize("compact", [False, True], ids=["vgg", "metric"])
def test_a_pyramid_with_spread_levels(tmp_path: Path, compact: bool, from_level: int) -> None:
    tensors = miniatures.vgg()
    if compact:
        tensors = miniatures.with_metric(
            tensors, {"relu1_1": 4, "relu2_1": 6, "relu3_1": 8, "relu4_1": 8, "relu4_2": 8}
        )
    weights_file = miniatures.save(tensors, tmp_path)
    network = "compact" if compact else "vgg19-oxford"
    wanted = config.load(changes={"levels": 1, "network": network, "precision": "float32"})
    content, style = (miniatures.picture(300, 260, seed, torch.float32) for seed in (1, 2))
    alone = Transfer(content, [style], wanted, device="cpu", weights_file=weights_file)
    with several(alone.network, 2) as workers:
        team = Shards(workers, parts=3, from_level=from_level)
        together = Transfer(content, [style], wanted, device="cpu", weights_file=weights_file, shards=team)
        found, expected = (run.pyramid.evaluate(run.starting_picture) for run in (together, alone))
        levels = {level for worker in workers for level, _ in worker.held}
    assert levels == set(range(from_level, 2))
    assert found.total == pytest.approx(expected.total, rel=1e-5)
    assert reference.relative_error(found.gradient, expected.gradient) < 1e-4


# ── How a picture is cut ─────────────────────────────────────────────────────────────────────────────────────────────


@given(height=st.integers(1, 20_000), count=st.integers(1, 300), blocks=st.integers(1, 5))
def test_parts_cover_every_row_once_and_are_about_equal(height: int, count: int, blocks: int) -> None:
    stride = 1 << (blocks - 1)
    parts = shards.cut(height, count, stride)
    assert parts[0].first == 0 and parts[-1].last == height
    assert all(before.last == after.first for before, after in pairwise(parts))
    assert all(part.first % stride == 0 for part in parts)
    assert len(parts) == max(1, min(count, height // stride))
    heights = [part.last - part.first for part in parts]
    assert max(heights) - min(heights) < 2 * stride
