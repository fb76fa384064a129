"""Whole runs: the same seed gives the same bytes, a resumed run is the uninterrupted one, and pictures are styled."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import config, devices, images, optimizers, weights
from core.config import Settings
from core.errors import CheckpointError, DivergenceError, MemoryLimitError, SettingsError, UserError, WeightsError
from core.optimizers import Evaluate, Iterate
from core.pyramid import Pyramid, PyramidLoss
from core.tiles import BlockTiling
from core.transfer import Step, Transfer
from tests import miniatures, reference

CONTENT = miniatures.picture(61, 67, seed=4, dtype=torch.float32)
STYLE = miniatures.picture(70, 64, seed=5, dtype=torch.float32)
QUICK: dict[str, Any] = {
    "levels": 0,
    "network": "vgg19-oxford",
    "precision": "float32",
    "optimizer": {"iterations": 4, "coarse_iterations": 3},
}
NOTHING: Mapping[str, Any] = MappingProxyType({})


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a random network of few channels."""
    return miniatures.save(miniatures.vgg(), tmp_path_factory.mktemp("weights"))


def settings(changes: Mapping[str, Any] = NOTHING, preset: str = "final") -> Settings:
    return config.load(preset, QUICK).changed(changes)


def transfer(small: Path, changes: Mapping[str, Any] = NOTHING, **others: Any) -> Transfer:
    """A run of a few steps on the CPU."""
    return Transfer(CONTENT, [STYLE], settings(changes), device="cpu", weights_file=small, **others)


def taken(steps: Iterable[Step]) -> list[Step]:
    """The starts of the stages and the steps taken, without what comes after a trial that was rejected."""
    return list({(step.stage, step.iteration): step for step in reversed(list(steps))}.values())[::-1]


def last_of(steps: Iterator[Step]) -> Step:
    *_, last = steps
    return last


# ── Steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_steps_tell_how_far_the_run_is(small: Path) -> None:
    run = transfer(small, {"levels": 1})
    steps = list(run.steps())
    expected = [(0, i) for i in range(4)] + [(1, i) for i in range(3, 8)]
    assert [(step.stage, step.iteration) for step in taken(steps)] == expected
    assert {(step.stages, step.iterations) for step in steps} == {(2, 7)}
    assert [step.evaluations for step in steps] == list(range(1, len(steps) + 1))
    assert all(before.seconds <= after.seconds for before, after in pairwise(steps))
    assert steps[0].seconds > 0
    assert run.size == (512, 562)
    for step in steps:
        size = (256, 281) if step.stage == 0 else run.size
        assert (step.height, step.width) == size
        assert [term.level for term in step.levels] == list(range(step.stage + 1))
        picture = step.picture()
        assert picture.shape == (1, 3, *size) and picture.dtype == torch.float32
        assert float(picture.min()) >= 0 and float(picture.max()) <= 1


def test_a_steps_loss_is_that_of_its_picture(small: Path) -> None:
    run = transfer(small, {"levels": 1, "loss": {"tv_weight": 0.5}})
    layers = run.network.style_layers, run.network.content_layers
    plain = reference.Reference(reference.Vgg(miniatures.vgg()), run.settings, CONTENT, [STYLE], *layers)
    for step in list(run.steps())[::3]:  # both stages, their first and later steps
        assert step.loss == pytest.approx(float(plain.loss(step.picture().double(), step.stage)), rel=1e-4)
        terms = [plain.terms(step.picture().double(), term.level) for term in step.levels]
        assert [term.style for term in step.levels] == pytest.approx([float(t.style) for t in terms], rel=1e-4)
        assert [term.content for term in step.levels] == pytest.approx([float(t.content) for t in terms], rel=1e-4)
        assert [term.tv for term in step.levels] == pytest.approx([float(t.tv) for t in terms], rel=1e-4)


@pytest.mark.parametrize(("optimizer", "iterations"), [("lbfgs", 10), ("adam", 40)])
@pytest.mark.parametrize("parametrisation", ["sigmoid", "clamp", "none"])
def test_every_optimiser_and_rule_lowers_the_loss(
    small: Path, optimizer: str, iterations: int, parametrisation: str
) -> None:
    changes = {"optimizer": {"name": optimizer, "parametrisation": parametrisation, "iterations": iterations}}
    steps = list(transfer(small, changes).steps())
    assert steps[-1].iteration == iterations
    assert steps[-1].loss < 0.7 * steps[0].loss
    assert float(steps[-1].picture().min()) >= 0 and float(steps[-1].picture().max()) <= 1


def test_the_first_step_moves_the_picture_by_what_was_asked_for(small: Path) -> None:
    first, second, *_ = taken(transfer(small, {"optimizer": {"step": 0.005}}).steps())
    moved = (second.picture() - first.picture()).square().mean().sqrt()
    assert float(moved) == pytest.approx(0.005, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "stages", "levels"),
    [
        ({"all_levels": False}, [1], [(1,)]),
        ({"optimizer": {"schedule": "joint"}}, [1], [(0, 1)]),
        ({}, [1, 2], [(0,), (0, 1)]),
    ],
    ids=["the finest alone", "joint", "coarse first"],
)
def test_the_schedule(small: Path, changes: dict[str, Any], stages: list[int], levels: list[tuple[int, ...]]) -> None:
    steps = list(transfer(small, {"levels": 1} | changes).steps())
    assert {step.stages for step in steps} == {len(stages)}
    found = [tuple(term.level for term in step.levels) for step in steps]
    assert list(dict.fromkeys(found)) == levels
    assert (steps[-1].height, steps[-1].width) == (512, 562)


@pytest.mark.parametrize("kept", [0.0, 0.3, 1.0])
def test_a_finer_stage_begins_with_the_coarser_result_and_some_detail_of_the_start(small: Path, kept: float) -> None:
    run = transfer(small, {"levels": 1, "optimizer": {"kept_detail": kept, "parametrisation": "clamp"}})
    steps = list(run.steps())
    coarse, fine = next((before, after) for before, after in pairwise(steps) if after.stage > before.stage)
    start = run.starting_picture
    detail = start - reference.resize(reference.resize(start, (256, 281)), (512, 562))
    expected = (reference.resize(coarse.picture(), (512, 562)) + kept * detail).clamp(0, 1)
    torch.testing.assert_close(fine.picture(), expected, rtol=0, atol=1e-5)


def test_a_settled_stage_ends_early(small: Path) -> None:
    changes = {"optimizer": {"iterations": 200, "tolerance": 0.5}}
    steps = taken(transfer(small, changes).steps())
    assert 10 <= steps[-1].iteration < 200
    assert steps[-1].loss > 0.5 * steps[-11].loss


# ── Starting pictures ────────────────────────────────────────────────────────────────────────────────────────────────


def start_of(small: Path, name: str, **others: Any) -> Tensor:
    return transfer(small, {"start": name}, **others).starting_picture


def test_the_start_is_what_was_asked_for(small: Path) -> None:
    content, style = (reference.resize(p, (256, 281)).clamp(0, 1) for p in (CONTENT, STYLE))
    given = miniatures.picture(40, 40, seed=9, dtype=torch.float32)
    torch.testing.assert_close(start_of(small, "content"), content)
    torch.testing.assert_close(start_of(small, "style"), style)
    expected = reference.resize(given, (256, 281)).clamp(0, 1)
    torch.testing.assert_close(start_of(small, "image", start=given), expected)


def test_random_starts(small: Path) -> None:
    content = start_of(small, "content")
    blended, alone, white = (start_of(small, name) for name in ("content+noise", "noise", "white-noise"))

    def similarity(picture: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([picture.flatten(), content.flatten()]))[0, 1])

    assert 0.3 < similarity(blended) < 0.999
    assert abs(similarity(white)) < 0.05 and abs(similarity(alone)) < 0.3
    assert float(white.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(white.std()) == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.parametrize("name", ["content", "content+noise", "noise", "white-noise", "style"])
def test_every_start_runs(small: Path, name: str) -> None:
    first, *_, last = transfer(small, {"start": name}).steps()
    assert last.loss < first.loss


def test_a_given_start_and_its_setting_go_together(small: Path) -> None:
    with pytest.raises(SettingsError, match='start = "image"'):
        transfer(small, {"start": "image"})
    with pytest.raises(SettingsError, match='start = "image"'):
        transfer(small, start=CONTENT)


def test_a_run_needs_a_style(small: Path) -> None:
    with pytest.raises(SettingsError, match="at least one style"):
        Transfer(CONTENT, [], settings(), device="cpu", weights_file=small)


@pytest.mark.parametrize("size", [(8, 160), (160, 8)])
def test_the_thinnest_pictures_run(small: Path, size: tuple[int, int]) -> None:
    thin = miniatures.picture(*size, dtype=torch.float32)
    changes = settings({"optimizer": {"iterations": 2}})
    last = last_of(Transfer(thin, [STYLE], changes, device="cpu", weights_file=small).steps())
    assert sorted((last.height, last.width)) == [256, 5120]
    assert math.isfinite(last.loss)


# ── The same bytes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_same_seed_gives_the_same_bytes(small: Path, optimizer: str, precision: str) -> None:
    changes = {"precision": precision, "optimizer": {"name": optimizer, "iterations": 3}, "seed": 11}

    def written(changes: dict[str, Any]) -> bytes:
        run = transfer(small, changes)
        return run.encode(last_of(run.steps()))

    first = written(changes)
    torch.manual_seed(5)
    assert written(changes) == first
    assert written(changes | {"seed": 12}) != first


def test_a_run_leaves_the_callers_random_numbers_and_pictures_alone(small: Path) -> None:
    content, style = CONTENT.clone(), STYLE.clone()
    state = torch.get_rng_state()
    last_of(Transfer(content, [style], settings(), device="cpu", weights_file=small).steps())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(content, CONTENT) and torch.equal(style, STYLE)


def test_asking_for_pictures_and_checkpoints_changes_nothing(small: Path) -> None:
    quiet, asked = transfer(small), transfer(small)
    expected = quiet.encode(last_of(quiet.steps()))
    for step in asked.steps():
        step.picture().zero_()
        step.checkpoint()
    assert asked.encode(step) == expected


# ── Resuming ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Recorded(NamedTuple):
    """An uninterrupted run: its steps, the checkpoint of each, and its last picture."""

    steps: list[Step]
    checkpoints: list[bytes]
    written: bytes


def record(run: Transfer) -> Recorded:
    steps, found = [], []
    for step in run.steps():
        steps.append(step)
        found.append(step.checkpoint())
    return Recorded(steps, found, run.encode(steps[-1]))


RUNS: dict[str, dict[str, Any]] = {
    "as a rule": {"levels": 1},
    "adam": {"levels": 1, "optimizer": {"name": "adam"}},
    "clamped": {"optimizer": {"parametrisation": "clamp"}},
    "short memory": {"optimizer": {"history": 2, "iterations": 7}},
    "16 bit": {"precision": "bfloat16"},
    "from noise": {"start": "white-noise", "optimizer": {"parametrisation": "none"}},
    "until it settles": {"optimizer": {"iterations": 60, "tolerance": 0.6}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_uninterrupted_one(small: Path, name: str) -> None:
    uninterrupted = record(transfer(small, RUNS[name]))
    steps, count = uninterrupted.steps, len(uninterrupted.steps)
    ends = [at for at in range(count - 1) if steps[at + 1].stage > steps[at].stage]
    for at in sorted({1, count - 2, *ends, *(end + 1 for end in ends)}):
        run = transfer(small, RUNS[name])
        resumed = list(run.steps(uninterrupted.checkpoints[at]))
        assert torch.equal(resumed[-1].picture(), steps[-1].picture())
        if steps[at] in taken(steps):  # else a trial is made again, and the recipe counts it
            assert run.encode(resumed[-1]) == uninterrupted.written
        expected = taken(steps[at:])
        for ours, theirs in zip(taken(resumed), expected, strict=True):
            for what in ("stage", "stages", "iteration", "iterations", "loss", "levels", "height", "width"):
                assert getattr(ours, what) == getattr(theirs, what)
        assert resumed[0].evaluations == steps[at].evaluations


def test_seconds_go_on_where_they_were(small: Path) -> None:
    uninterrupted = record(transfer(small, {"levels": 1}))
    for at in (2, 6):
        first = next(iter(transfer(small, {"levels": 1}).steps(uninterrupted.checkpoints[at])))
        assert first.seconds == pytest.approx(uninterrupted.steps[at].seconds, abs=0.5)
        assert first.seconds >= uninterrupted.steps[at].seconds


def test_a_run_can_be_interrupted_twice(small: Path) -> None:
    uninterrupted = record(transfer(small))
    again = record_until(transfer(small).steps(uninterrupted.checkpoints[2]), 1)
    last = last_of(transfer(small).steps(again))
    assert torch.equal(last.picture(), uninterrupted.steps[-1].picture())


def record_until(steps: Iterator[Step], count: int) -> bytes:
    for _ in range(count):
        next(steps)
    return next(steps).checkpoint()


@pytest.fixture(scope="module")
def checkpoint(small: Path) -> bytes:
    return record_until(transfer(small).steps(), 2)


def test_a_checkpoint_of_another_run_is_refused(small: Path, checkpoint: bytes, tmp_path: Path) -> None:
    other = miniatures.save(miniatures.vgg(seed=1), tmp_path)
    changed = CONTENT.clone()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    for run in (
        Transfer(changed, [STYLE], settings(), device="cpu", weights_file=small),
        Transfer(CONTENT.flip(3), [STYLE], settings(), device="cpu", weights_file=small),
        Transfer(CONTENT, [STYLE, STYLE], settings(), device="cpu", weights_file=small),
        Transfer(CONTENT, [CONTENT], settings(), device="cpu", weights_file=small),
        transfer(small, {"seed": 1}),
        transfer(small, {"loss": {"content_weight": 0.5}}),
        transfer(other),
    ):
        with pytest.raises(CheckpointError, match="other pictures, settings or weights"):
            next(run.steps(checkpoint))


def test_a_checkpoint_is_good_for_the_same_run_in_less_memory(small: Path, checkpoint: bytes) -> None:
    first, *_ = transfer(small, {"max_memory": 6.5}).steps(checkpoint)
    assert first.evaluations == 3


@pytest.mark.parametrize("length", [0, 100, 5000, -1])
def test_a_damaged_checkpoint_is_refused(small: Path, checkpoint: bytes, length: int) -> None:
    with pytest.raises(CheckpointError, match="can't be read"):
        next(transfer(small).steps(checkpoint[:length]))


# ── Stopping, and losses that are no numbers ─────────────────────────────────────────────────────────────────────────


class Counter:
    """Counts the evaluations of a pyramid, and may change what they find."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.totals: dict[int, float] = {}
        evaluate = Pyramid.evaluate

        def counted(pyramid: Pyramid, picture: Tensor, finest: int | None = None) -> PyramidLoss:
            self.count += 1
            found = evaluate(pyramid, picture, finest)
            return PyramidLoss(self.totals.get(self.count, found.total), found.levels, found.gradient)

        monkeypatch.setattr(Pyramid, "evaluate", counted)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_closing_stops_within_one_evaluation(
    small: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, after: int
) -> None:
    counter = Counter(monkeypatch)
    steps = transfer(small, {"levels": 1, "optimizer": {"name": optimizer}}).steps()
    assert counter.count == 0
    for _ in range(after):
        assert next(steps).evaluations == counter.count
    before = counter.count
    steps.close()
    assert counter.count == before
    assert next(steps, None) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_recovers_from_a_loss_that_is_no_number(
    small: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    counter = Counter(monkeypatch)
    counter.totals = {3: value, 4: value}
    steps = list(transfer(small).steps())
    assert all(math.isfinite(step.loss) for step in steps)
    assert steps[-1].iteration == 4
    assert steps[-1].loss < steps[0].loss


def test_weights_that_overflow_end_the_run_with_a_remedy(tmp_path: Path) -> None:
    tensors = {key: value * 1e8 for key, value in miniatures.vgg().items()}
    with pytest.raises(DivergenceError) as caught:
        next(transfer(miniatures.save(tensors, tmp_path)).steps())
    assert "not a finite number" in caught.value.cause
    assert caught.value.remedy


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_loss_that_stays_no_number_ends_the_run_with_a_remedy_and_a_good_picture(
    small: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    counter = Counter(monkeypatch)
    counter.totals = dict.fromkeys(range(4, 100), math.nan)
    good: list[Step] = []
    with pytest.raises(DivergenceError) as caught:
        good.extend(transfer(small, {"optimizer": {"name": optimizer}}).steps())
    assert caught.value.remedy
    assert good and taken(good)[-1].evaluations <= 3
    assert math.isfinite(good[-1].loss) and bool(good[-1].picture().isfinite().all())
    assert counter.count < 30, "it should give up"


# ── What is written ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parametrisation", ["sigmoid", "clamp"])
def test_the_loss_of_the_written_file_is_the_one_reported(small: Path, parametrisation: str) -> None:
    run = transfer(small, {"optimizer": {"parametrisation": parametrisation, "iterations": 25}})
    last = last_of(run.steps())
    written = images.read(run.encode(last)).pixels
    assert run.pyramid.evaluate(written).total == pytest.approx(last.loss, rel=0.05)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_a_recipe_repeats_the_run(small: Path, format: str) -> None:
    run = transfer(small, {"seed": 3, "noise": {"strength": 0.5}})
    data = run.encode(last_of(run.steps()), format)
    recipe = images.read_recipe(data)
    again = Transfer(CONTENT, [STYLE], config.parse(recipe["settings"]), device="cpu", weights_file=small)
    assert again.settings == run.settings
    assert again.encode(last_of(again.steps()), format) == data


def test_a_recipe_says_what_made_the_picture_and_nothing_of_who(small: Path) -> None:
    run = transfer(small)
    last = last_of(run.steps())
    recipe = images.read_recipe(run.encode(last))
    assert recipe["seed"] == run.settings.seed
    assert recipe["network"]["name"] == "vgg19-oxford"
    assert recipe["network"]["sha256"] == run.network.sha256
    assert recipe["network"]["style_layers"] == ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]
    assert recipe["sizes"] == {"result": [281, 256], "content": [67, 61], "styles": [[64, 70]]}
    assert (recipe["iterations"], recipe["evaluations"]) == (last.iteration, last.evaluations)
    assert recipe["loss"] == pytest.approx(last.loss)
    assert recipe["versions"].keys() >= {"python", "torch"} and recipe["version"]
    text = json.dumps(recipe)
    assert str(small) not in text and small.name not in text and Path.home().name not in text.split('"')


def test_transparency_comes_back(small: Path) -> None:
    alpha = torch.zeros(1, 1, 61, 67)
    alpha[..., 30:, :] = 1
    run = transfer(small, alpha=alpha)
    found = images.read(run.encode(last_of(run.steps()))).alpha
    assert found is not None and found.shape == (1, 1, 256, 281)
    assert float(found[..., :110, :].max()) == 0 and float(found[..., 150:, :].min()) == 1
    opaque = transfer(small)
    assert images.read(opaque.encode(last_of(opaque.steps()))).alpha is None


def test_16_bit_files_hold_more_of_the_picture(small: Path) -> None:
    run = transfer(small)
    last = last_of(run.steps())
    coarse, fine = (images.read(run.encode(last, bits=bits)).pixels for bits in (8, 16))
    assert float((fine - last.picture()).abs().max()) < 1e-5 < float((coarse - last.picture()).abs().max()) < 0.0021


# ── Networks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(tmp_path: Path) -> Path:
    return miniatures.save(miniatures.vgg(8), tmp_path)


def test_classical_runs_on_a_network_cut_short_and_says_so(tmp_path: Path) -> None:
    run = Transfer(CONTENT, [STYLE], settings(preset="classical"), device="cpu", weights_file=cut(tmp_path))
    assert run.notices and "relu4_1" in run.notices[0]
    assert run.pyramid.style_layers == ("relu1_1", "relu2_1", "relu3_1", "relu3_4")
    assert run.pyramid.content_layers == ("relu3_2",)
    first, *_, last = run.steps()
    assert last.loss < first.loss


def test_classical_is_to_the_letter_on_a_whole_network(small: Path) -> None:
    run = Transfer(CONTENT, [STYLE], settings(preset="classical"), device="cpu", weights_file=small)
    assert run.notices == ()
    assert run.pyramid.style_layers == ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


def test_a_layer_that_is_asked_for_and_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="relu4_1"):
        transfer(cut(tmp_path), {"loss": {"style_layers": ["relu4_1"]}})


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        transfer(tmp_path / "none.safetensors")


def test_a_run_that_does_not_fit_is_refused_before_it_starts(small: Path) -> None:
    with pytest.raises(MemoryLimitError) as caught:
        transfer(small, {"max_memory": 0.01, "levels": 6})
    assert caught.value.remedy
    assert isinstance(caught.value, UserError)


def test_a_run_in_little_memory_finds_the_same_loss(small: Path) -> None:
    roomy, narrow = transfer(small, {"levels": 1}), transfer(small, {"levels": 1})
    narrow.plan = replace(narrow.plan, tilings=((BlockTiling(32, keep=False),), (BlockTiling(48, keep=False),)))
    assert narrow.plan != roomy.plan
    ours, theirs = (run.pyramid.evaluate(run.starting_picture) for run in (roomy, narrow))
    assert ours.total == pytest.approx(theirs.total, rel=1e-5)
    assert reference.relative_error(ours.gradient, theirs.gradient) < 1e-4


# ── A photograph and a painting ──────────────────────────────────────────────────────────────────────────────────────


def luminance(picture: Tensor) -> Tensor:
    return (picture * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1, keepdim=True)


def gradient(plane: Tensor) -> Tensor:
    """The magnitude of the gradient [H − 1, W − 1] of a plane [1, 1, H, W]."""
    down, across = plane.diff(dim=2)[..., :-1], plane.diff(dim=3)[..., :-1, :]
    return torch.hypot(down, across)[0, 0]


def likeness(first: Tensor, second: Tensor) -> float:
    """Correlation of two pictures' edges at 384 × 256."""
    edges = [gradient(F.interpolate(luminance(p), (256, 384), mode="bicubic", antialias=True)) for p in (first, second)]
    return float(torch.corrcoef(torch.stack([edge.flatten() for edge in edges]))[0, 1])


@pytest.mark.slow
def test_a_photograph_is_painted_and_still_recognised(shared: Path) -> None:
    pixels = {path.stem: images.read(path).pixels for path in (shared / "images").glob("*/[a-z]*.jpg")}
    weights = shared / "weights" / "vgg19_oxford_conv1_1_to_conv3_4.safetensors"
    changes = {"levels": 1, "network": "vgg19-oxford", "optimizer": {"iterations": 6, "coarse_iterations": 14}}
    chosen = config.load("final", changes)
    run = Transfer(pixels["bird"], [pixels["matisse2"]], chosen, device="cpu", weights_file=weights)
    assert run.size == (512, 768)
    start = run.pyramid.evaluate(run.starting_picture)
    last = last_of(run.steps())

    before, after = (sum(term.style for term in terms) for terms in (start.levels, last.levels))
    assert after < before / 10
    assert last.evaluations < 1.3 * last.iteration

    written = images.read(run.encode(last)).pixels
    assert run.pyramid.evaluate(written).total == pytest.approx(last.loss, rel=0.05)

    # Pictures that have nothing to do with each other have edges that correlate by 0.05 at most, and so have this one
    # and its mirror image. With 0.25 the bird's outline is plainly there: a person finds it at once.
    assert likeness(written, pixels["bird"]) > 0.25
    assert likeness(written, pixels["car"]) < 0.1
    assert likeness(written, pixels["athens"]) < 0.1

    # A frame would show as a stronger gradient in the outermost four pixels; zero padding gives 1.4 to 2.
    edges = gradient(luminance(written))
    inside = edges[4:-4, 4:-4]
    rim = (edges.sum() - inside.sum()) / (edges.numel() - inside.numel())
    assert float(rim / inside.mean()) < 1.15


# ── 16 bit, and where it ends ────────────────────────────────────────────────────────────────────────────────────────


def _stalling(evaluate: Evaluate, start: Tensor, *_: Any, stalled: Callable[[], bool], **__: Any) -> Iterator[Iterate]:
    """An optimiser that finds no step that helps."""
    for number in range(2):
        loss, gradient = evaluate(start)
        yield Iterate(start, loss, gradient, 0, number + 1, lambda: {"point": start})
        if not stalled():
            return


def test_a_run_in_16_bit_that_stalls_goes_on_in_float32(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: dict[str, torch.dtype] = {"auto": torch.bfloat16, "float32": torch.float32}
    monkeypatch.setattr(devices, "dtype", lambda precision, device: chosen[precision])
    monkeypatch.setattr(optimizers, "OPTIMIZERS", {"lbfgs": _stalling})
    run = transfer(small, {"precision": "auto"})
    rough, exact = list(run.steps())
    expected = next(transfer(small).steps())
    assert rough.loss != pytest.approx(expected.loss, rel=1e-6)
    assert exact.loss == pytest.approx(expected.loss, rel=1e-6)
    assert run.recipe(exact)["precision"] == "float32"
    assert next(transfer(small, {"precision": "auto"}).steps(exact.checkpoint())).loss == exact.loss


def test_a_precision_that_was_asked_for_stays(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "OPTIMIZERS", {"lbfgs": _stalling})
    assert len(list(transfer(small, {"precision": "bfloat16"}).steps())) == 1


# ── Time, foretold ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_run_foretells_the_next(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    first = transfer(small)
    before = first.expected_seconds
    start, *_ = first.steps()
    after = first.expected_seconds
    assert before is None
    assert after is not None
    assert transfer(small, {"optimizer": {"iterations": 40}}).expected_seconds == pytest.approx(10 * after)

    list(transfer(small).steps(start.checkpoint()))
    assert transfer(small).expected_seconds == after, "a part of a run foretells nothing"
