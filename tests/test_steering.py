"""New weights while a run goes on: what may change, when it takes effect, and that a recipe repeats it bit for bit."""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from core import config, images, optimizers, steering
from core.config import Settings
from core.errors import RecipeError, SettingsError
from core.steering import Steering, differences, same_targets, steered
from core.transfer import Step, Transfer
from tests import miniatures

CONTENT = miniatures.picture(61, 67, seed=4, dtype=torch.float32)
STYLES = [
    miniatures.picture(70, 64, seed=5, dtype=torch.float32),
    miniatures.picture(64, 80, seed=6, dtype=torch.float32),
]
NOTHING: Mapping[str, Any] = MappingProxyType({})
QUICK: dict[str, Any] = {
    "levels": 1,
    "network": "vgg19-oxford",
    "precision": "float32",
    "optimizer": {"iterations": 4, "coarse_iterations": 6},
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a random network of few channels."""
    return miniatures.save(miniatures.vgg(), tmp_path_factory.mktemp("weights"))


def transfer(small: Path, changes: Mapping[str, Any] = NOTHING, **others: Any) -> Transfer:
    return Transfer(
        CONTENT, STYLES, config.load("final", QUICK).changed(changes), device="cpu", weights_file=small, **others
    )


# ── What may change ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"content_weight": 0.5}},
        {"loss": {"style_weight": 2, "tv_weight": 1, "level_weights": [1, 2], "protect_weight": 3}},
        {"styles": [{"weight": 3}]},
        {"styles": [{"weight": 0}, {"weight": 1}, {"weight": 2}]},
        {},
    ],
)
def test_weights_may_change(changes: dict[str, Any]) -> None:
    assert steered(Settings(), changes) == Settings().changed(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": 2},
        {"seed": 4},
        {"colour": "content"},
        {"noise": {"strength": 0.1}},
        {"loss": {"content_layers": ["relu1_1"]}},
        {"loss": {"content_weight": 0.1, "normalisation": "gatys"}},
        {"styles": [{"scale": 2}]},
        {"optimizer": {"iterations": 3}},
    ],
)
def test_nothing_else_may(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="only weights can change") as caught:
        steered(Settings(), changes)
    assert "loss.content_weight" in caught.value.remedy


def test_a_weight_that_is_not_allowed_is_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="content_weight"):
        Steering(Settings()).ask({"loss": {"content_weight": -1}})


def test_a_style_keeps_its_scale() -> None:
    before = config.parse({"styles": [{"scale": 2}]})
    assert steered(before, {"styles": [{"scale": 2, "weight": 3}]}).style(0).weight == 3
    with pytest.raises(SettingsError):
        steered(before, {"styles": [{"weight": 3}]})


def test_differences_lead_from_one_to_the_other() -> None:
    before = config.parse({"loss": {"content_weight": 0.5}, "styles": [{"weight": 1}]})
    after = before.changed({"loss": {"tv_weight": 2, "level_weights": [1, 3]}, "styles": [{"weight": 4}]})
    assert differences(before, before) == {}
    assert steered(before, differences(before, after)) == after


@pytest.mark.parametrize("recorded", [None, 3, [{"changes": {}}], [{"evaluation": -1, "iteration": 0, "changes": {}}]])
def test_a_damaged_record_is_refused(recorded: Any) -> None:
    with pytest.raises(RecipeError):
        steering.parse(recorded)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"loss": {"content_weight": 1}}, True),
        ({"noise": {"strength": 0.1}}, True),
        ({"seed": 3}, True),
        ({"styles": [{"weight": 2}]}, True),
        ({"colour": "matched"}, False),
        ({"levels": 2}, False),
        ({"styles": [{"scale": 2}]}, False),
        ({"pooling": "average"}, False),
        ({"loss": {"style_layers": ["relu1_1"]}}, False),
    ],
)
def test_which_settings_share_statistics(changes: dict[str, Any], shared: bool) -> None:
    assert same_targets(Settings(), Settings().changed(changes)) is shared


# ── When it takes effect ─────────────────────────────────────────────────────────────────────────────────────────────

SECOND = {"loss": {"content_weight": 0.3}, "styles": [{"weight": 3}, {"weight": 1}]}


def steered_run(run: Transfer, wishes: Mapping[int, Mapping[str, Any]]) -> list[Step]:
    """All steps; wishes are made after so many evaluations."""
    steps = []
    for step in run.steps():
        steps.append(step)
        if step.evaluations in wishes and step.evaluations not in [s.evaluations for s in steps[:-1]]:
            run.steer(wishes[step.evaluations])
    return steps


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_next_evaluation_is_under_the_new_weights(small: Path, optimizer: str) -> None:
    run = transfer(small, {"optimizer": {"name": optimizer}})
    before, after = None, None
    for step in run.steps():
        if step.evaluations == 3:
            before = step
            run.steer({"loss": {"style_weight": 0.0, "content_weight": 1.0}})
        if step.evaluations == 4:
            after = step
            break
    assert before is not None and after is not None
    assert after.iteration == before.iteration, "the same point is evaluated again"
    assert torch.equal(after.picture(), before.picture())
    assert after.loss == pytest.approx(after.levels[0].content, rel=1e-6)
    assert after.levels[0].content == pytest.approx(before.levels[0].content, rel=1e-5)
    assert [(s.evaluation, s.iteration) for s in run.steered] == [(3, before.iteration)]


def test_new_weights_lead_somewhere_else(small: Path) -> None:
    plain = list(transfer(small).steps())
    steps = steered_run(transfer(small), {3: {"loss": {"content_weight": 10.0}}})
    assert steps[-1].levels[0].content < 0.7 * plain[-1].levels[0].content


def test_a_wish_from_another_thread_is_heard(small: Path) -> None:
    run = transfer(small)
    steps = run.steps()
    next(steps)
    asker = threading.Thread(target=run.steer, args=({"loss": {"tv_weight": 5.0}},))
    asker.start()
    asker.join()
    assert next(steps).levels[0].tv > 0
    assert len(run.steered) == 1


# ── Repeating it ─────────────────────────────────────────────────────────────────────────────────────────────────────

WISHES: dict[str, dict[int, Mapping[str, Any]]] = {
    "once": {4: SECOND},
    "twice": {2: {"loss": {"content_weight": 2.0}}, 9: SECOND},
    "at the end of a stage": {7: SECOND},
    "at the beginning of a stage": {8: SECOND},
}


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("name", WISHES)
def test_a_recipe_repeats_a_steered_run_bit_for_bit(small: Path, name: str, optimizer: str) -> None:
    changes = {"optimizer": {"name": optimizer}}
    run = transfer(small, changes)
    written = run.encode(steered_run(run, WISHES[name])[-1])
    recipe = images.read_recipe(written)
    assert len(recipe["steering"]) == len(WISHES[name])
    assert config.parse(recipe["settings"]) == run.settings

    again = transfer(small, changes, steering=steering.parse(recipe["steering"]))
    *_, last = again.steps()
    assert again.encode(last) == written
    assert again.steered == run.steered


def test_a_second_run_of_the_same_transfer_begins_with_the_first_weights(small: Path) -> None:
    run = transfer(small)
    first = steered_run(run, {4: SECOND})
    *_, last = run.steps()
    plain = list(transfer(small).steps())
    assert torch.equal(last.picture(), plain[-1].picture())
    assert not torch.equal(last.picture(), first[-1].picture())


@pytest.mark.parametrize("at", [2, 3, 5, 6, 7, 8, 10, 13])
def test_a_resumed_run_is_the_steered_one(small: Path, at: int) -> None:
    """Whether it stopped before the change, which is then made again, or after it."""
    run = transfer(small)
    checkpoints: dict[int, bytes] = {}
    for step in run.steps():
        checkpoints.setdefault(step.evaluations, step.checkpoint())
        if step.evaluations == 5 and not run.steered:
            run.steer(SECOND)
    resumed = transfer(small, steering=run.steered)
    *_, last = resumed.steps(checkpoints[at])
    assert torch.equal(last.picture(), step.picture())
    assert resumed.encode(last) == run.encode(step)


# ── The optimisers ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_an_optimiser_finds_the_minimum_of_what_the_objective_became(name: str) -> None:
    centre = torch.tensor([1.0, -2.0, 3.0])
    scales = torch.tensor([1.0, 5.0, 0.3])

    def evaluate(point: torch.Tensor) -> tuple[float, torch.Tensor]:
        return float((scales * (point - centre).square()).sum()), 2 * scales * (point - centre)

    moved: list[int] = []

    def changed(iteration: int, evaluations: int) -> bool:
        if iteration != 6 or moved:
            return False
        moved.append(evaluations)
        centre.copy_(torch.tensor([-4.0, 7.0, 0.0]))
        scales.copy_(torch.tensor([50.0, 0.2, 4.0]))
        return True

    steps = optimizers.OPTIMIZERS[name](
        evaluate, torch.zeros(3), lambda point, direction: 0.1, history=5, changed=changed
    )
    for iterate in steps:
        if moved and iterate.evaluations == moved[0] + 1:
            assert iterate.loss == pytest.approx(evaluate(iterate.point)[0])
        if iterate.iteration == (60 if name == "lbfgs" else 1500):
            break
    torch.testing.assert_close(iterate.point, centre, rtol=0, atol=0.05)
