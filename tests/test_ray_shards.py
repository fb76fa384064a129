"""A picture spread over actors of a real Ray, against one device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core import config, images
from core.shards import Shards
from core.studio import JobState, Studio, StudioSettings
from core.studio.jobs import LostRunError, RaySettings
from core.transfer import Transfer
from core.weights import Weights, load
from tests import miniatures, reference

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install -e '.[ray]')")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Three places to compute, on this machine."""
    ray.init(num_cpus=3, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, Weights]:
    path = miniatures.save(miniatures.vgg(), tmp_path)
    return path, load("vgg19-oxford", path)


SETTINGS = config.load(changes={"levels": 1, "network": "vgg19-oxford", "precision": "float32"})


def transfer(weights_file: Path, shards: Shards | None) -> Transfer:
    content, style = (miniatures.picture(290, 260, seed, torch.float32) for seed in (1, 2))
    return Transfer(content, [style], SETTINGS, device="cpu", weights_file=weights_file, shards=shards)


def test_actors_make_the_same_picture_as_one_device(cluster: None, weights: tuple[Path, Weights]) -> None:
    from core.studio.executors import ray_shards

    path, loaded = weights
    alone = transfer(path, None)
    with ray_shards.workers(SETTINGS, loaded, device=CPU, others=2, resources={"CPU": 1}, patience=60) as workers:
        assert len(workers) == 3
        together = transfer(path, Shards(workers, parts=3))
        for picture in (alone.starting_picture, alone.starting_picture.flip(3)):
            found, expected = (run.pyramid.evaluate(picture) for run in (together, alone))
            assert found.total == pytest.approx(expected.total, rel=1e-5)
            assert reference.relative_error(found.gradient, expected.gradient) < 1e-4


def test_what_is_not_free_is_done_without_and_changes_not_a_bit(cluster: None, weights: tuple[Path, Weights]) -> None:
    from core.studio.executors import ray_shards

    path, loaded = weights
    found = []
    for others, patience in ((0, 60.0), (2, 60.0), (5, 6.0)):
        with ray_shards.workers(
            SETTINGS, loaded, device=CPU, others=others, resources={"CPU": 1}, patience=patience
        ) as workers:
            assert len(workers) == 1 + others or others > 3 >= len(workers) - 1
            run = transfer(path, Shards(workers, parts=4, from_level=1))
            found.append(run.pyramid.evaluate(run.starting_picture).gradient)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_worker_that_dies_loses_the_run_and_not_the_job(cluster: None, weights: tuple[Path, Weights]) -> None:
    from core.studio.executors import ray_shards

    path, loaded = weights
    with ray_shards.workers(SETTINGS, loaded, device=CPU, others=1, resources={"CPU": 1}, patience=60) as workers:
        run = transfer(path, Shards(workers, parts=2, from_level=1))
        run.pyramid.evaluate(run.starting_picture)
        workers[1].close()
        with pytest.raises(LostRunError, match="went away"):
            run.pyramid.evaluate(run.starting_picture)


async def test_jobs_from_a_level_on_are_spread_where_the_operator_says_so(cluster: None, tmp_path: Path) -> None:
    spread = RaySettings(gpus=0, cpus=1, spread_level=0, spread_workers=2)
    settings = config.load(changes={"levels": 0, "network": "compact", "optimizer": {"iterations": 2}})
    pictures = [images.encode(miniatures.picture(256, 260, seed, torch.float32), "png") for seed in (1, 2)]
    async with Studio.open(tmp_path, StudioSettings(executor="ray", ray=spread)) as studio:
        content, style = [await studio.add_input("me", picture) for picture in pictures]
        job = await studio.submit("me", content, [style], settings)
        job = await studio.wait(job.id)
    assert job.state is JobState.DONE, job.error
    assert "2 of 2 workers" in " ".join(notice.text for notice in job.notices)
