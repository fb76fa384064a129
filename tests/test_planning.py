"""Plans keep to their limits, and what they foretell follows from sizes, network and settings."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import config, planning, weights
from core.errors import MemoryLimitError, WeightsError
from core.planning import GIB
from core.pyramid import level_size
from core.weights import Weights
from tests import miniatures

CPU = torch.device("cpu")
CONTENT, STYLES = (2048, 3072), [(1000, 1500)]


@pytest.fixture(scope="module")
def compact() -> Weights:
    return weights.load("compact")


def planned(network: Weights, **changes: object) -> planning.Plan:
    return planning.plan(config.load(changes={"network": "compact", **changes}), CONTENT, STYLES, CPU, network)


@settings(deadline=None, max_examples=40)
@given(limit=st.floats(0.5, 40), levels=st.integers(0, 6))
def test_a_plan_keeps_to_the_limit_or_is_refused(limit: float, levels: int) -> None:
    network = weights.load("compact")
    try:
        found = planned(network, max_memory=limit, levels=levels)
    except MemoryLimitError as error:
        assert f"level {levels} needs at least" in str(error)
    else:
        assert found.memory_bytes <= limit * GIB


def test_the_refusal_names_the_largest_level_that_fits_and_what_would_do(compact: Weights) -> None:
    with pytest.raises(MemoryLimitError) as caught:
        planned(compact, max_memory=2.0, levels=5)
    words = str(caught.value)
    fits = int(words.partition("--levels ")[2][0])
    planned(compact, max_memory=2.0, levels=fits)
    with pytest.raises(MemoryLimitError):
        planned(compact, max_memory=2.0, levels=fits + 1)
    enough = float(words.rpartition("or allow ")[2].split()[0])
    planned(compact, max_memory=enough, levels=5)


def test_a_style_larger_than_the_picture_counts_and_is_taken_in_bands_where_memory_is_short(compact: Weights) -> None:
    chosen = config.load(changes={"network": "compact", "levels": 1, "max_memory": 100})
    usual, long = ([(1000, 1500)], [(1000, 12000)])
    roomy = [planning.plan(chosen, CONTENT, styles, CPU, compact) for styles in (usual, long)]
    assert roomy[0].tilings == roomy[1].tilings
    given = 12 * 1000 * (12000 - 1500)
    assert roomy[1].memory_bytes > roomy[0].memory_bytes + given
    tight = chosen.model_copy(update={"max_memory": (roomy[0].memory_bytes + given) / GIB})
    found = planning.plan(tight, CONTENT, long, CPU, compact)
    assert found.memory_bytes <= roomy[0].memory_bytes + given
    assert not all(block.keep for block in found.tilings[1])


def test_less_memory_means_bands_then_a_shorter_history_in_16_bit(compact: Weights) -> None:
    roomy, tight = planned(compact, levels=3, max_memory=20), planned(compact, levels=3, max_memory=3)
    assert all(block.keep for block in roomy.tilings[3])
    assert not roomy.half_history
    assert not all(block.keep for block in tight.tilings[3])
    assert tight.half_history
    assert tight.history <= roomy.history


def test_no_plan_depends_on_what_is_free_at_the_moment(compact: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(compact, levels=4)
    ballast = torch.ones(64 * 2**20)
    assert planned(compact, levels=4) == before
    assert ballast.numel()


def test_bands_are_even_and_higher_than_what_they_read_twice(compact: Weights) -> None:
    for level, tiling in enumerate(planned(compact, levels=4, max_memory=7).tilings):
        for block, convolutions in zip(tiling, (2, 2, 4), strict=True):
            assert block.rows % 2 == 0, level
            assert block.rows >= 8 * 2 * convolutions


def test_memory_grows_with_the_level_the_history_and_the_styles(compact: Weights) -> None:
    needs = [planned(compact, levels=level, max_memory=100).memory_bytes for level in range(6)]
    assert needs == sorted(needs)
    long = planned(compact, levels=2, max_memory=100, optimizer={"history": 30})
    short = planned(compact, levels=2, max_memory=100, optimizer={"history": 10})
    vector = 12 * 1024 * 1536
    assert long.memory_bytes - short.memory_bytes == 20 * 2 * vector


def test_operations_by_hand(tmp_path: Path) -> None:
    """Two stages of a network with 4, 4, 6 channels: convolutions forward and back, four products of Gram matrices."""
    network = weights.load("vgg19-oxford", miniatures.save(miniatures.vgg(3), tmp_path))
    optimizer = {"coarse_iterations": 5, "iterations": 3, "tolerance": 0.0}
    chosen = config.load(changes={"network": "vgg19-oxford", "levels": 1, "optimizer": optimizer})
    plan = planning.plan(chosen, (40, 60), [(40, 60)], CPU, network)

    def level(number: int) -> float:
        height, width = level_size((40, 60), number)
        quarter = (height // 2) * (width // 2)
        convolutions = 2 * 2 * 9 * ((3 * 4 + 4 * 4) * height * width + 4 * 6 * quarter)
        return convolutions + 8 * (4 * 4 * height * width + 6 * 6 * quarter)

    assert planning.operations(chosen, (40, 60), CPU, network, plan) == (5 + 3) * level(0) + 3 * level(1)


def test_stages_that_end_when_they_have_settled_are_expected_to_be_shorter(compact: Weights) -> None:
    def operations(levels: int, tolerance: float) -> float:
        optimizer = {"coarse_iterations": 50, "iterations": 50, "tolerance": tolerance}
        chosen = config.load(changes={"network": "compact", "levels": levels, "optimizer": optimizer})
        plan = planning.plan(chosen, CONTENT, STYLES, CPU, compact)
        return planning.operations(chosen, CONTENT, CPU, compact, plan)

    assert operations(0, 0.03) == operations(0, 0.0), "the first stage takes all of them"
    shares = [operations(levels, 0.03) / operations(levels, 0.0) for levels in (1, 2, 3)]
    assert 0.8 < shares[0] < 0.95
    assert 0.45 < shares[2] < shares[1] < 0.6


def test_the_run_that_is_nearest_in_size_tells_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    at = [config.load(changes={"network": "compact", "levels": levels}) for levels in range(4)]
    planning.remember_speed("compact", at[0], CPU, operations=1e12, seconds=1.0)
    assert [planning.measured_speed("compact", one, CPU) for one in at] == [1e12] * 4
    planning.remember_speed("compact", at[3], CPU, operations=4e12, seconds=1.0)
    assert [planning.measured_speed("compact", one, CPU) for one in at] == [1e12, 1e12, 4e12, 4e12]
    planning.remember_speed("compact", at[0], CPU, operations=2e12, seconds=1.0)
    assert planning.measured_speed("compact", at[1], CPU) == 2e12
    planning.remember_speed("compact", at[2], CPU, operations=3e12, seconds=1.0)
    assert planning.measured_speed("compact", at[1], CPU) == 3e12, "of two as near, the larger"
    assert planning.measured_speed("vgg19", at[0], CPU) is None


@pytest.mark.parametrize(
    "damaged",
    ["", "[]", "{", '{"KEY": 2e12}', '{"KEY": {}}', '{"KEY": {"1": "x"}}', '{"KEY": {"1": 0}}', '{"KEY": {"1": NaN}}'],
)
def test_a_damaged_record_of_speeds_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    chosen = config.load(changes={"network": "compact", "levels": 1})
    planning.remember_speed("compact", chosen, CPU, operations=6e12, seconds=3.0)
    (key,) = json.loads((tmp_path / "speeds.json").read_text())
    (tmp_path / "speeds.json").write_text(damaged.replace("KEY", key))
    assert planning.measured_speed("compact", chosen, CPU) is None
    planning.remember_speed("compact", chosen, CPU, operations=6e12, seconds=3.0)
    assert planning.measured_speed("compact", chosen, CPU) == 2e12


def test_weights_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    chosen = config.load(changes={"network": "vgg19-oxford", "levels": 1})
    with pytest.raises(WeightsError):
        planning.estimate(chosen, CONTENT, STYLES, "cpu")
    file = miniatures.save(miniatures.vgg(), tmp_path)
    network = weights.load("vgg19-oxford", file)
    found = planning.estimate(chosen, CONTENT, STYLES, "cpu", weights_file=file)
    assert found.memory_bytes == planning.plan(chosen, CONTENT, STYLES, CPU, network).memory_bytes


def test_time_is_foretold_from_the_last_run(compact: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    chosen = config.load(changes={"network": "compact", "levels": 1})
    assert planning.estimate(chosen, CONTENT, STYLES, "cpu").seconds is None
    planning.remember_speed("compact", chosen, CPU, operations=6e12, seconds=3.0)
    plan = planning.plan(chosen, CONTENT, STYLES, CPU, compact)
    expected = planning.operations(chosen, CONTENT, CPU, compact, plan) / 2e12
    assert planning.estimate(chosen, CONTENT, STYLES, "cpu").seconds == pytest.approx(expected)
    exact = chosen.changed({"precision": "float32"})
    needs = [planning.estimate(one, CONTENT, STYLES, "cpu").memory_bytes for one in (chosen, exact)]
    assert needs == sorted(needs)
