"""Grids: every combination, each with settings of its own; both ends of an interpolation are the two styles."""

import itertools
from typing import Any

import pytest

from core import config, sweep
from core.config import Settings
from core.errors import SettingsError

BASE = config.load("final")


def cells(*axes: str, settings: Settings = BASE) -> list[sweep.Cell]:
    return list(itertools.chain(*sweep.grid(settings, [sweep.axis(text) for text in axes])))


def test_one_axis_is_a_row() -> None:
    found = sweep.grid(BASE, [sweep.axis("loss.content_weight=0.01, 0.1,1")])
    assert [len(row) for row in found] == [3]
    assert [cell.settings.loss.content_weight for cell in found[0]] == [0.01, 0.1, 1]
    assert [cell.label for cell in found[0]] == ["content_weight 0.01", "content_weight 0.1", "content_weight 1"]
    assert all(
        cell.settings.changed({"loss": {"content_weight": BASE.loss.content_weight}}) == BASE for cell in found[0]
    )


def test_two_axes_are_all_combinations() -> None:
    found = cells("noise.strength=0.2,0.9", "colour=style,palette,matched")
    expected = list(itertools.product([0.2, 0.9], ["style", "palette", "matched"]))
    assert [(cell.settings.noise.strength, cell.settings.colour) for cell in found] == expected
    assert [(cell.row, cell.column) for cell in found] == list(itertools.product(range(2), range(3)))
    assert len({cell.settings.seed for cell in found}) == 1


def test_a_dial_is_an_axis() -> None:
    low, preset, high = (cell.settings for cell in cells("content-strength=2,5,9"))
    assert low.loss.content_weight < preset.loss.content_weight < high.loss.content_weight
    assert preset == BASE


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.iterations=3,4", [3, 4]),
        ("loss.level_weights=[1, 2], [2, 1]", [(1, 2), (2, 1)]),
        ("network=compact", ["compact"]),
    ],
)
def test_values_are_toml_or_words(text: str, values: list[Any]) -> None:
    *tables, key = text.partition("=")[0].split(".")
    found = [cell.settings for cell in cells(text)]
    assert [getattr(getattr(s, tables[0]) if tables else s, key) for s in found] == values


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["noise.strength"], "KEY=a,b,c"),
        (["=1,2"], "KEY=a,b,c"),
        (["noise.strength="], "KEY=a,b,c"),
        (["noise.strenght=1,2"], "Did you mean 'strength'"),
        (["noise.strength=0.5,2"], "less than or equal to 1"),
        (["content-strength=5,11"], "goes from 0 to 10"),
        (["content-strength=a,b"], "takes numbers"),
        (["seed=1", "seed=2", "seed=3"], "one thing or two"),
        (["seed=" + ",".join(map(str, range(11))), "levels=" + ",".join(["0"] * 10)], "too large"),
    ],
)
def test_mistakes_are_told_before_the_work(axes: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        cells(*axes)


def test_an_interpolation_goes_from_one_style_to_the_other() -> None:
    settings = config.parse({"styles": [{"scale": 2}]})
    (row,) = sweep.grid(settings, [sweep.interpolation(5)])
    weights = [[style.weight for style in cell.settings.styles] for cell in row]
    assert weights == [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]]
    assert all([style.scale for style in cell.settings.styles] == [2, 1] for cell in row)
    with pytest.raises(SettingsError, match="at least two"):
        sweep.interpolation(1)
