"""Three plain dials: 5 is the preset, each goes one way only, and the ends stay within what settings allow."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import config, dials
from core.config import Settings
from core.errors import SettingsError

PRESETS = ["classical", "final", "light", "pixel-noise", "style-noise"]
NAMES = [dial.name for dial in dials.DIALS]


def strengths(settings: Settings) -> dict[str, float]:
    """What the dials are about, each larger where there is more of it."""
    return {
        "content": settings.loss.content_weight / settings.loss.style_weight,
        "style": settings.loss.style_weight / settings.loss.content_weight,
        "noise": settings.noise.strength - settings.noise.gradient_weight,
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_in_the_middle_everything_is_the_presets(preset: str) -> None:
    settings = config.load(preset)
    assert dials.apply(settings, {}) == settings
    assert dials.apply(settings, dict.fromkeys(NAMES, 5)) == settings


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_dial_goes_one_way(preset: str, name: str) -> None:
    settings = config.load(preset)
    found = [strengths(dials.apply(settings, {name: mark / 2}))[name] for mark in range(21)]
    assert all(before < after for before, after in pairwise(found))


def test_the_ends() -> None:
    settings = config.load("final")
    assert dials.apply(settings, {"noise": 0}).noise.strength == 0
    full = dials.apply(settings, {"noise": 10}).noise
    assert (full.strength, full.gradient_weight) == (1, 0)
    assert dials.apply(settings, {"content": 10}).loss.content_weight == pytest.approx(0.5)
    assert dials.apply(settings, {"style": 0}).loss.style_weight == pytest.approx(0.01)
    assert dials.apply(settings, {"content": 0}).noise.gradient_weight == 0


@given(values=st.fixed_dictionaries(dict.fromkeys(NAMES, st.floats(0, 10))), preset=st.sampled_from(PRESETS))
def test_all_of_them_together_are_settings(values: dict[str, float], preset: str) -> None:
    found = dials.apply(config.load(preset), values)
    assert found.loss.content_weight > 0 and found.loss.style_weight > 0
    assert found.noise.levels == config.load(preset).noise.levels


@pytest.mark.parametrize("value", [-0.1, 10.1, float("nan"), float("inf")])
def test_beyond_the_ends_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="goes from 0 to 10"):
        dials.apply(Settings(), {"style": value})


def test_an_unknown_dial_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="content, style, noise"):
        dials.apply(Settings(), {"colour": 5})
