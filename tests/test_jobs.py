"""Jobs as values: states, names, work, JSON."""

import re

import pytest
from pydantic import ValidationError

from core.config import OptimizerSettings, Settings
from core.studio.jobs import (
    TRANSITIONS,
    Job,
    JobState,
    JobStateError,
    LossPoint,
    StudioSettings,
    check_transition,
    new_id,
    remaining_work,
    stage_costs,
    total_work,
)
from tests.studio_doubles import progress

Q, R, P, D, F, C = JobState


def job(**changes: object) -> Job:
    values = {"id": new_id(), "owner": "lab", "content": "c", "styles": ("s",), "settings": Settings(), "created": 1.0}
    return Job.model_validate(values | {"width": 768, "height": 512} | changes)


LEGAL = {
    (Q, R), (Q, P), (Q, C), (Q, F),
    (R, D), (R, F), (R, C), (R, P), (R, Q),
    (P, Q), (P, C),
    (F, Q), (C, Q),
}  # fmt: skip


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("after", JobState)
def test_exactly_the_drawn_transitions_are_legal(before: JobState, after: JobState) -> None:
    if (before, after) in LEGAL:
        check_transition(before, after)
    else:
        with pytest.raises(JobStateError, match=str(before)):
            check_transition(before, after)


def test_nothing_follows_done() -> None:
    assert not TRANSITIONS[D]


def test_pending_is_whatever_may_still_come_to_a_result() -> None:
    assert [state for state in JobState if state.pending] == [Q, R, P]


def test_ids_are_safe_in_urls_and_file_names_and_never_alike() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-f]{24}", name) for name in ids)


def test_settings_are_frozen_and_know_their_keys() -> None:
    settings = StudioSettings()
    with pytest.raises(ValidationError):
        settings.slots_per_device = 2
    with pytest.raises(ValidationError):
        StudioSettings.model_validate({"slot_per_device": 2})
    with pytest.raises(ValidationError):
        StudioSettings(slots_per_device=0)


def test_a_job_survives_json() -> None:
    whole = job(progress=progress(7), tags={"table": "gallery"}, state=R)
    assert Job.model_validate_json(whole.model_dump_json()) == whole


def test_a_loss_that_is_not_finite_survives_json() -> None:
    point = LossPoint(iteration=1, seconds=0.1, loss=float("inf"), levels=())
    assert LossPoint.model_validate_json(point.model_dump_json()) == point


def test_what_is_shown_of_a_job_has_no_books() -> None:
    shown = job(key="mine", process="p").public()
    assert not {"rank", "crashes", "process", "version", "key"} & shown.keys()
    assert shown["state"] == "queued"
    assert {"position", "seconds_left", "progress", "result", "error", "attempt"} <= shown.keys()


# A picture of 1024 × 512 at L = 2: its levels have 131072, 32768 … 512 · 256 / 4^k pixels.
PYRAMID = Settings(levels=2, optimizer=OptimizerSettings(iterations=10, coarse_iterations=20))
LEVELS = [256 * 128, 512 * 256, 1024 * 512]


def test_work_of_coarse_first_is_that_of_every_stage() -> None:
    sums = [LEVELS[0], LEVELS[0] + LEVELS[1], sum(LEVELS)]
    assert stage_costs(PYRAMID, 1024, 512) == [(20, sums[0]), (20, sums[1]), (10, sums[2])]
    assert total_work(PYRAMID, 1024, 512) == 20 * sums[0] + 20 * sums[1] + 10 * sums[2]


def test_work_of_one_stage() -> None:
    joint = PYRAMID.changed({"optimizer": {"schedule": "joint"}})
    assert stage_costs(joint, 1024, 512) == [(10, sum(LEVELS))]
    classical = PYRAMID.changed({"all_levels": False})
    assert stage_costs(classical, 1024, 512) == [(10, LEVELS[2])]


def test_remaining_work_falls_to_nothing() -> None:
    left = [remaining_work(PYRAMID, 1024, 512, progress(done, 50)) for done in range(51)]
    assert left[0] == remaining_work(PYRAMID, 1024, 512, None) == total_work(PYRAMID, 1024, 512)
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert left[40] - left[41] == sum(LEVELS), "the last stage costs most"


def test_a_stage_that_ended_early_leaves_only_the_later_ones() -> None:
    # The first stage took 5 iterations instead of 20: of now 35 in all, 30 are left, those of the other two stages.
    sums = [LEVELS[0] + LEVELS[1], sum(LEVELS)]
    assert remaining_work(PYRAMID, 1024, 512, progress(5, 35)) == 20 * sums[0] + 10 * sums[1]
