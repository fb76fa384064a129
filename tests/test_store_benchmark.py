"""The benchmark of the head measures what it says, on a small scale."""

from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import store
from core.studio.jobs import JobState
from core.studio.store import Store


def test_every_kind_of_transaction_is_done_to_every_job(tmp_path: Path) -> None:
    found = store.transactions(tmp_path, 5)
    assert set(found) == {"submit", "claim", "progress", "progress, and what changed", "finish"}
    assert all(rate > 0 for rate in found.values())
    with closing(Store(tmp_path)) as reopened:
        assert reopened.counts()[JobState.DONE] == 5


@pytest.mark.parametrize("pages", [1, 3])
async def test_events_reach_every_page(pages: int) -> None:
    assert await store.fan_out(pages, 50) > 0


async def test_a_job_starts_beside_running_ones(tmp_path: Path) -> None:
    found = await store.service(tmp_path, running=3, seconds=0.2)
    assert found["running"] == 3
    assert 0 < found["start_seconds"] < 30
    assert found["events_per_second"] > 1
