"""The textbook and the product minimise the same function; the race's judge finds what it looks for."""

from pathlib import Path

import pytest
import torch

from benchmarks import evaluation, race, speed, textbook
from core import weights
from tests import miniatures


@pytest.fixture
def setting(tmp_path: Path) -> race.Setting:
    """A small pair at L = 1, in float32, through a miniature network."""
    file = miniatures.save(miniatures.vgg(8), tmp_path)
    settings = race.settings("vgg19-oxford", 1, precision="float32")
    content, style = (
        miniatures.picture(*size, seed=seed, dtype=torch.float32) for size, seed in (((40, 56), 0), ((64, 48), 3))
    )
    return race.Setting(content, style, settings, file, "cpu")


def test_both_minimise_the_same_function(setting: race.Setting) -> None:
    product = race.Product(setting)
    picture = miniatures.picture(*product.transfer.size, seed=5).float().requires_grad_()
    loss = race.textbook_loss(setting, product.transfer)(picture)
    (gradient,) = torch.autograd.grad(loss, picture)
    found = product.transfer.pyramid.evaluate(picture.detach())
    assert found.total == pytest.approx(float(loss.detach()), rel=1e-4)
    assert float((found.gradient - gradient).norm() / gradient.norm()) < 1e-3


def test_the_textbook_evaluates_as_often_as_it_may_and_lowers_the_loss() -> None:
    target = miniatures.picture(6, 5).float()
    losses: list[float] = []
    textbook.optimise(
        lambda picture: (picture - target).square().sum(),
        torch.zeros_like(target),
        7,
        lambda loss, _: losses.append(loss),
    )
    assert len(losses) <= 7
    assert losses[-1] < 1e-6 < losses[0]


class _Constant:
    """A judge's loss: the mean of the picture."""

    def __call__(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.mean()


def _run(levels: list[float]) -> race.Run:
    run = race.Run()
    for seconds, level in enumerate(levels):
        run.record(float(seconds), level, torch.full((1, 3, 8, 8), level))
    return run


@pytest.mark.parametrize("best", [0, 3, 7, 11])
def test_the_judge_finds_the_best_and_the_first_as_good(best: int) -> None:
    levels = [0.2 + 0.05 * abs(index - best) for index in range(12)]
    judge = race.Judge(_Constant(), torch.device("cpu"))  # type: ignore[arg-type]
    run = _run(levels)
    assert judge.best(run) == best
    first = next(index for index, level in enumerate(levels) if level <= 0.31)
    assert judge.first_below(run, 0.31) == first
    assert judge.first_below(run, 0.05) is None


def test_ratios_are_of_the_times_at_the_marks() -> None:
    products: dict[str, dict[str, float | None]] = {
        "VGG-19": {"written": 5.0, "float": None},
        "compact": {"written": 2.0, "float": 4.0},
    }
    one = race.Race(("a", "b"), {"written": 40.0, "float": 60.0}, products)
    assert one.ratio("VGG-19", "written") == 8.0
    assert one.ratio("VGG-19", "float") is None
    found = speed.summary([one])
    assert found["compact float"]["median"] == 15.0
    assert found["VGG-19 float"] == {"median": 0.0, "lowest": 0.0, "highest": 0.0, "reached": "0 of 1"}


def test_arithmetic_of_one_evaluation(tmp_path: Path) -> None:
    """By hand, for a network of 4, 4, 6 channels and Gram matrices at relu1_1 and relu2_1: forward and back."""
    file = miniatures.save(miniatures.vgg(3), tmp_path)
    content = miniatures.picture(40, 60, dtype=torch.float32)
    transfer = race.Product(race.Setting(content, content, race.settings("vgg19-oxford", 0), file, "cpu")).transfer
    assert transfer.pyramid.style_layers == ("relu1_1", "relu2_1")
    pixels, quarter = 256 * 384, 128 * 192
    products = 9 * (3 * 4 + 4 * 4) * pixels + 9 * 4 * 6 * quarter + 4 * 4 * pixels + 6 * 6 * quarter
    assert evaluation.arithmetic(transfer, (40, 60)) == 2 * 2 * products


def test_networks_that_end_early_are_completed(tmp_path: Path) -> None:
    part = miniatures.vgg(2, widths=(64, 64, *miniatures.WIDTHS[2:]))
    file = miniatures.save(part, tmp_path)
    whole = evaluation.completed(file, "vgg19-oxford", tmp_path)
    loaded = weights.load("vgg19-oxford", whole)
    assert torch.equal(loaded.tensors["features.2.weight"], part["features.2.weight"])
    assert loaded.tensors["features.34.weight"].shape == (512, 512, 3, 3)
    assert evaluation.completed(whole, "vgg19-oxford", tmp_path) == whole
