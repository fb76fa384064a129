"""Whole runs under the controls: every preview, at every level, keeps what the result promises."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import colours, config, images
from core.errors import SettingsError, UserError
from core.transfer import Step, Transfer
from tests import miniatures, reference

CONTENT = miniatures.picture(61, 67, seed=4, dtype=torch.float32)
STYLE = miniatures.picture(70, 64, seed=5, dtype=torch.float32)
OTHER = miniatures.picture(64, 80, seed=6, dtype=torch.float32)
NOTHING: Mapping[str, Any] = MappingProxyType({})
QUICK: dict[str, Any] = {
    "levels": 1,
    "network": "vgg19-oxford",
    "precision": "float32",
    "optimizer": {"iterations": 3, "coarse_iterations": 4},
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a random network of few channels."""
    return miniatures.save(miniatures.vgg(), tmp_path_factory.mktemp("weights"))


def transfer(
    small: Path, changes: Mapping[str, Any] = NOTHING, styles: tuple[Tensor, ...] = (STYLE,), **others: Any
) -> Transfer:
    settings = config.load("final", QUICK).changed(changes)
    return Transfer(CONTENT, styles, settings, device="cpu", weights_file=small, **others)


def content_at(step: Step) -> Tensor:
    return reference.resize(CONTENT, (step.height, step.width)).clamp(0, 1)


def left_half() -> Tensor:
    mask = torch.zeros(1, 1, 50, 40)
    mask[..., :20] = 1
    return mask


# ── Colours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_contents_colours_are_there_in_every_preview(small: Path) -> None:
    run = transfer(small, {"colour": "content"})
    for step in list(run.steps())[::2]:
        picture, content = step.picture(), content_at(step)
        grey = colours.grey(picture)
        # What was optimised is the luminance of what is shown: its loss is the reported one.
        assert run.pyramid.evaluate(grey, step.stage).total == pytest.approx(step.loss, rel=1e-3)
        chroma, wanted = picture - grey, content - colours.grey(content)
        assert float((chroma.abs() <= wanted.abs() + 1e-5).float().mean()) == 1, "paled at most"
        assert float(F.cosine_similarity(chroma, wanted, 1)[chroma.norm(dim=1) > 0.02].min()) > 0.99


@pytest.mark.parametrize("way", ["content", "matched", "histogram"])
def test_noise_has_the_colours_that_the_network_sees(small: Path, way: str) -> None:
    """A blue style over a red photograph: where the style is recoloured, no blue is left in the start."""
    red, blue = 0.2 * CONTENT, 0.2 * STYLE
    red[:, 0] += 0.6
    blue[:, 2] += 0.7
    settings = config.load("final", QUICK).changed({"colour": way})
    start = Transfer(red, [blue], settings, device="cpu", weights_file=small).starting_picture
    plain = Transfer(red, [blue], settings.changed({"colour": "style"}), device="cpu", weights_file=small)
    excess = float((start[:, 2] - start[:, 0]).max())
    assert excess < 0.05
    assert float((plain.starting_picture[:, 2] - plain.starting_picture[:, 0]).max()) > 0.3


def test_a_palette_holds_at_every_level(small: Path) -> None:
    draw = torch.rand(3, generator=torch.Generator().manual_seed(1))
    few = 0.3 * STYLE + 0.5 * draw[None, :, None, None]
    run = transfer(small, {"colour": "palette"}, styles=(few,))
    for step in list(run.steps())[::3]:
        picture = step.picture()
        quantiles = torch.linspace(0, 1, 21)
        for channel in range(3):
            ours, theirs = (p[0, channel].flatten().quantile(quantiles) for p in (picture, few))
            assert float((ours - theirs).abs().max()) < 0.05


def test_the_default_is_as_it_was_without_controls(small: Path) -> None:
    """Weights alone, of one style, are no control at all; nor are empty lists of masks."""
    *_, plain = transfer(small).steps()
    *_, weighed = transfer(small, {"styles": [{"weight": 7}]}, masks=[None]).steps()
    assert torch.equal(plain.picture(), weighed.picture())


# ── Regions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_protected_region_is_the_content_in_every_preview(small: Path) -> None:
    run = transfer(small, {"colour": "palette"}, protect=left_half())
    for step in run.steps():
        half = step.width // 2 - step.height // 32
        assert float((step.picture() - content_at(step))[..., :half].abs().max()) < 0.005
    assert float((step.picture() - content_at(step))[..., step.width // 2 + 20 :].abs().mean()) > 0.05


def test_the_reported_loss_is_that_of_the_picture_with_its_protected_region(small: Path) -> None:
    run = transfer(small, protect=left_half(), masks=[1 - left_half()])
    for step in list(run.steps())[::3]:
        assert run.pyramid.evaluate(step.picture(), step.stage).total == pytest.approx(step.loss, rel=1e-3)


def test_noise_stays_in_its_region(small: Path) -> None:
    run = transfer(small, styles=(STYLE,), masks=[left_half()])
    start, width = run.starting_picture, run.size[1]
    content = reference.resize(CONTENT, run.size).clamp(0, 1)
    assert float((start - content)[..., width // 2 + 20 :].abs().max()) < 1e-5
    assert float((start - content)[..., : width // 2 - 20].abs().mean()) > 0.03
    protected = transfer(small, protect=left_half()).starting_picture
    assert float((protected - content)[..., : width // 2 - 40].abs().max()) < 1e-5


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_guided_runs_lower_their_loss(small: Path, optimizer: str) -> None:
    changes = {"levels": 0, "optimizer": {"name": optimizer, "iterations": 30}}
    run = transfer(small, changes, styles=(STYLE, OTHER), masks=[left_half(), 1 - left_half()])
    first, *_, last = run.steps()
    assert last.loss < 0.7 * first.loss


def test_a_guided_run_resumes_as_it_was(small: Path) -> None:
    made: dict[str, Any] = {"masks": [left_half(), None], "protect": left_half().flip(2)}
    run = transfer(small, {"colour": "content"}, styles=(STYLE, OTHER), **made)
    steps = []
    for step in run.steps():
        steps.append((step, step.checkpoint()))
    again = transfer(small, {"colour": "content"}, styles=(STYLE, OTHER), **made)
    *_, last = again.steps(steps[6][1])
    assert again.encode(last) == run.encode(steps[-1][0])
    other = transfer(small, {"colour": "content"}, styles=(STYLE, OTHER), masks=[None, left_half()])
    with pytest.raises(UserError, match="other pictures"):
        next(other.steps(steps[6][1]))


def test_more_masks_than_styles_are_refused(small: Path) -> None:
    with pytest.raises(SettingsError, match="2 masks for 1 styles"):
        transfer(small, masks=[None, left_half()])


@pytest.mark.parametrize("mode", ["grey", "colours", "transparent"])
def test_a_mask_is_read_from_any_picture(mode: str) -> None:
    shape = left_half().expand(1, 3, 50, 40)
    alpha = left_half() if mode == "transparent" else None
    pixels = torch.ones_like(shape) if mode == "transparent" else shape
    found = images.read_mask(images.encode(pixels, "png", alpha=alpha))
    assert torch.equal(found, left_half())


# ── What runs share ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"content_weight": 0.4}},
        {"styles": [{"weight": 1}, {"weight": 4}]},
        {"noise": {"strength": 0.1}},
        {"colour": "matched"},
        {"styles": [{"scale": 0.5}]},
        {"levels": 0},
    ],
)
def test_a_varied_run_is_a_run_of_its_own(small: Path, changes: dict[str, Any]) -> None:
    base = transfer(small, {"levels": 1}, styles=(STYLE, OTHER), masks=[left_half(), None])
    _ = base.pyramid
    varied = base.varied(base.settings.changed(changes))
    fresh = transfer(small, {"levels": 1} | changes, styles=(STYLE, OTHER), masks=[left_half(), None])
    assert varied.settings == fresh.settings
    ours, theirs = (next(run.steps()) for run in (varied, fresh))
    assert torch.equal(ours.picture(), theirs.picture())
    assert ours.loss == theirs.loss
