"""Settings are validated, frozen, merged table by table; presets say what the method needs; mistakes name the key."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core import config
from core.config import NoiseLevel, Settings
from core.errors import SettingsError

PRESETS = ["classical", "final", "light", "pixel-noise", "spots-128", "spots-16", "style-noise"]


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        config.parse(data)
    return str(caught.value)


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_given_is_every_default() -> None:
    assert config.parse({}) == Settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().levels = 3
    with pytest.raises(ValidationError):
        Settings().loss.style_weight = 2.0


@pytest.mark.parametrize(
    ("data", "key", "suggestion"),
    [
        ({"level": 2}, "level", "levels"),
        ({"loss": {"contnt_weight": 1}}, "loss.contnt_weight", "content_weight"),
        ({"noise": {"strenght": 1}}, "noise.strenght", "strength"),
        ({"noise": {"levels": [{"spot": 3}]}}, "noise.levels.0.spot", "spots"),
        ({"optimizer": {"itterations": 3}}, "optimizer.itterations", "iterations"),
    ],
)
def test_an_unknown_key_is_refused_with_the_closest_known_one(data: dict[str, Any], key: str, suggestion: str) -> None:
    assert f"'{key}'" in refusal(data)
    assert f"Did you mean '{suggestion}'?" in refusal(data)


def test_an_unknown_key_like_none_is_refused_with_all_that_there_are() -> None:
    text = refusal({"loss": {"zzz": 1}})
    assert "'loss.zzz'" in text
    assert "content_weight" in text and "normalisation" in text


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"levels": -1}, "levels"),
        ({"levels": 7}, "levels"),
        ({"levels": 1.5}, "levels"),
        ({"levels": "many"}, "levels"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"network": "resnet"}, "network"),
        ({"pooling": "median"}, "pooling"),
        ({"start": "nothing"}, "start"),
        ({"max_memory": 0}, "max_memory"),
        ({"max_memory": -3}, "max_memory"),
        ({"max_memory": math.inf}, "max_memory"),
        ({"loss": {"content_weight": -0.1}}, "loss.content_weight"),
        ({"loss": {"style_weight": math.inf}}, "loss.style_weight"),
        ({"loss": {"style_weight": math.nan}}, "loss.style_weight"),
        ({"loss": {"level_weights": []}}, "loss.level_weights"),
        ({"loss": {"style_layers": []}}, "loss.style_layers"),
        ({"loss": {"content_layers": []}}, "loss.content_layers"),
        ({"loss": 3}, "loss"),
        ({"noise": {"strength": 1.5}}, "noise.strength"),
        ({"noise": {"levels": [{"spots": 9, "centre": 1.1}]}}, "noise.levels.0.centre"),
        ({"noise": {"levels": [{"spots": 0}]}}, "noise.levels.0.spots"),
        ({"noise": {"levels": [{"spots": 9, "spread": 0}]}}, "noise.levels.0.spread"),
        ({"noise": {"levels": [{"spots": 9, "spread": math.nan}]}}, "noise.levels.0.spread"),
        ({"optimizer": {"iterations": 0}}, "optimizer.iterations"),
        ({"optimizer": {"step": 0}}, "optimizer.step"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name"),
        ({"optimizer": {"tolerance": 1}}, "optimizer.tolerance"),
    ],
    ids=str,
)
def test_a_value_that_is_not_allowed_is_refused_by_its_key(data: dict[str, Any], key: str) -> None:
    assert f"'{key}" in refusal(data)


@pytest.mark.parametrize(
    "level", [{}, {"spots": 9, "grain": 1}, {"grain": 2, "constant": True}, {"spots": 9, "constant": True}], ids=str
)
def test_a_noise_level_has_exactly_one_size(level: dict[str, Any]) -> None:
    assert "exactly one of: spots, grain, constant" in refusal({"noise": {"levels": [level]}})


def test_what_is_no_setting_at_all_is_refused() -> None:
    assert refusal({"levels": object()})
    assert refusal({"levels": {1, 2}})


def test_the_last_level_weight_holds_for_all_finer_levels() -> None:
    loss = config.parse({"loss": {"level_weights": [3, 0.5]}}).loss
    assert [loss.level_weight(level) for level in range(4)] == [3, 0.5, 0.5, 0.5]


def test_by_default_all_levels_weigh_the_same() -> None:
    assert {Settings().loss.level_weight(level) for level in range(7)} == {1}


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_json(preset: str) -> None:
    settings = config.load(preset)
    assert config.parse(settings.model_dump(mode="json")) == settings
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


# ── Changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_changes_are_merged_table_by_table_and_lists_replaced() -> None:
    before = config.load("final")
    after = before.changed({"loss": {"tv_weight": 2}, "noise": {"levels": [{"grain": 3}]}})
    assert after.loss == before.loss.model_copy(update={"tv_weight": 2.0})
    assert after.noise.levels == (NoiseLevel(grain=3),)
    assert after.noise.strength == before.noise.strength
    assert before == config.load("final"), "the settings themselves should stay"


def test_changes_are_validated() -> None:
    with pytest.raises(SettingsError, match=r"loss\.tv_weight"):
        Settings().changed({"loss": {"tv_weight": -1}})


def test_assignments_are_toml_values_and_bare_words() -> None:
    assert config.parse_assignments(
        [
            "levels=2",
            "loss.content_weight = 1e-3",
            "optimizer.name=adam",
            'network="vgg19-oxford"',
            "all_levels=false",
            "loss.level_weights=[1, 0.5]",
            "noise.levels=[{spots = 9, centre = 0.2}]",
            "title=as it is",
            "loss.tv_weight=1",
            "description=a=b",
        ]
    ) == {
        "levels": 2,
        "loss": {"content_weight": 0.001, "level_weights": [1, 0.5], "tv_weight": 1},
        "optimizer": {"name": "adam"},
        "network": "vgg19-oxford",
        "all_levels": False,
        "noise": {"levels": [{"spots": 9, "centre": 0.2}]},
        "title": "as it is",
        "description": "a=b",
    }


def test_a_later_assignment_wins() -> None:
    assert config.parse_assignments(["levels=2", "levels=3"]) == {"levels": 3}


@pytest.mark.parametrize("wrong", ["levels", "=3", "loss.=3", ".levels=3", "loss..tv_weight=3", ""])
def test_an_assignment_without_key_or_value_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match="key=value"):
        config.parse_assignments([wrong])


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_assignment_is_anything_but_settings_or_a_settings_error(key: str, value: str) -> None:
    try:
        Settings().changed(config.parse_assignments([f"{key}={value}"]))
    except SettingsError as error:
        assert error.cause


# ── Presets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_presets_are_listed_with_what_they_say_of_themselves() -> None:
    found = config.presets()
    assert [preset.name for preset in found] == PRESETS
    assert len({preset.title for preset in found}) == len({preset.description for preset in found}) == len(PRESETS)
    assert all(preset.path.is_file() for preset in found)
    assert config.DEFAULT_PRESET in PRESETS


def test_final_has_the_methods_five_levels_of_noise() -> None:
    noise = config.load("final").noise
    first, second, third, grain, constant = noise.levels
    assert [first.spots, second.spots, third.spots] == [9, 18, 36]
    assert grain.grain is not None and constant.constant
    assert [level.centre for level in noise.levels] == [0.30, 0.28, 0.27, 0.05, 0.05]
    assert [level.edge for level in noise.levels] == [0.20, 0.30, 0.40, 0.10, 0.00]
    assert [level.spread for level in noise.levels] == [0.20, 0.30, 0.40, 0.60, 0.30]
    assert {level.source for level in noise.levels} == {"style"}
    assert noise.strength == 0.95
    assert noise.gradient_weight > 0


def test_classical_is_gatys_2015() -> None:
    settings = config.load("classical")
    assert not settings.all_levels
    assert settings.pooling == "average"
    assert settings.padding == "zeros"
    assert settings.start in ("content", "white-noise")
    assert settings.loss.normalisation == "gatys"
    assert settings.loss.style_layers == ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    assert settings.loss.content_layers == ("relu4_2",)
    assert settings.loss.tv_weight == 0
    assert settings.noise.levels == ()
    assert settings.optimizer.name == "lbfgs"
    assert settings.optimizer.schedule == "joint"


def test_the_stages_grow_one_from_another() -> None:
    pixels, few, many, style, final = (
        config.load(name).noise for name in ("pixel-noise", "spots-16", "spots-128", "style-noise", "final")
    )
    assert [level.grain for level in pixels.levels] == [1]
    assert [level.spots for level in few.levels] == [16]
    assert [level.spots for level in many.levels] == [128]
    assert {level.source for stage in (pixels, few, many) for level in stage.levels} == {"normal"}
    assert {level.source for level in style.levels} == {"style"} and len(style.levels) > 1
    assert [stage.gradient_weight > 0 for stage in (pixels, few, many, style, final)] == [False] * 4 + [True]


def test_light_is_final_with_less_noise_and_more_content() -> None:
    light, final = config.load("light"), config.load("final")
    assert light.noise.levels == final.noise.levels
    assert light.noise.strength < final.noise.strength
    assert light.loss.content_weight > final.loss.content_weight
    assert light.title != final.title and light.description != final.description


def test_a_presets_own_keys_go_before_those_that_it_extends(tmp_path: Path) -> None:
    write(tmp_path, "base.toml", 'title = "Base"\nlevels = 3\n[loss]\ntv_weight = 1.0\nstyle_weight = 2.0\n')
    middle = 'extends = "base.toml"\n[loss]\ntv_weight = 5.0\n'
    write(tmp_path, "middle.toml", middle)
    path = write(tmp_path, "mine.toml", 'extends = "middle.toml"\nseed = 4\n[loss]\ncontent_weight = 0.5\n')
    settings = config.load(path)
    assert (settings.levels, settings.seed) == (3, 4)
    assert (settings.loss.content_weight, settings.loss.tv_weight, settings.loss.style_weight) == (0.5, 5.0, 2.0)
    assert settings.title == "", "a preset introduces itself"


def test_a_file_extends_a_preset_by_name_and_another_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path, "base.toml", 'extends = "light"\nlevels = 2\n')
    path = write(tmp_path / "inner", "mine.toml", 'extends = "../base.toml"\n')
    assert config.load(path).noise == config.load("light").noise
    assert config.load(str(path)).levels == 2


def test_changes_go_before_the_preset() -> None:
    assert config.load("light", {"levels": 3, "noise": {"strength": 0.1}}).noise.strength == 0.1


@pytest.mark.parametrize(("name", "said"), [("finel", "Did you mean 'final'?"), ("zzz", "classical"), ("", "final")])
def test_an_unknown_preset_is_refused_with_a_suggestion(name: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        config.load(name)
    assert f"no preset '{name}'" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("name", ["../presets/final", "/etc/passwd", "..", "final/../final"])
def test_a_presets_name_is_no_path(name: str) -> None:
    with pytest.raises(SettingsError, match="no preset"):
        config.load(name)


def test_a_preset_that_extends_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "one.toml", 'extends = "two.toml"')
    path = write(tmp_path, "two.toml", 'extends = "one.toml"')
    with pytest.raises(SettingsError, match="extends itself"):
        config.load(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"levels = ", "not valid TOML"),
        (b"levels = 1\nlevels = 2", "not valid TOML"),
        (b"\xff\xfe", "can't be read"),
        (b"levle = 1", "levels"),
        (b'extends = "nowhere"', "no preset 'nowhere'"),
        (b'extends = "nowhere.toml"', "no preset file"),
        (b"extends = 3", "no preset '3'"),
    ],
)
def test_a_broken_preset_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        config.load(path)
    assert said in str(caught.value)


def test_a_preset_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no preset file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(SettingsError, match="no preset file"):
        config.load(tmp_path / "folder.toml")
