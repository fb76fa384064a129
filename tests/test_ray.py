"""The queue over a Ray cluster of two nodes on this machine: what crosses, what dies, who goes on."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.config import OptimizerSettings, Settings
from core.errors import DeviceError, ImageError, SettingsError
from core.studio import Job, Studio, StudioSettings, read_settings
from core.studio.executors import on_ray, ray_cluster, ray_worker
from core.studio.executors.on_ray import RayExecutor
from core.studio.executors.ray_worker import moved, paths_of
from core.studio.jobs import JobState, RaySettings, Run
from core.studio.store import Store
from tests.ray_doubles import STORE_BYTES, SmallCluster, Stage, installed, refusing, small_cluster
from tests.studio_doubles import QUICK, SMALL, rehearsed, submit

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60
STEPS = 40
EXPECTED = rehearsed(b"content", b"style", STEPS)


# ── Without a cluster ────────────────────────────────────────────────────────────────────────────────────────────────


def python(script: str, **environment: str) -> str:
    """What a script prints in an interpreter of its own."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_studio_without_ray_loads_none_of_it() -> None:
    script = "import sys, core.studio, core.studio.executors.on_ray; print({'ray', 'torch'} & set(sys.modules))"
    assert python(script) == "set()\n"


async def test_without_ray_the_operator_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it weren't installed
    (tmp_path / "studio.toml").write_text('executor = "ray"\n')
    with pytest.raises(DeviceError, match=re.escape("pip install -e '.[ray]'")):
        async with Studio.open(tmp_path):
            pass


@installed
@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("ray://10.0.0.1:10001", "ray start --address"),
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1 .*Start the cluster's head"),
        ("somewhere", "no Ray cluster at somewhere"),
    ],
)
def test_an_address_where_no_cluster_is_is_refused_at_once(tmp_path: Path, address: str, complaint: str) -> None:
    with pytest.raises(DeviceError, match=complaint):
        RayExecutor(tmp_path, StudioSettings(ray=RaySettings(address=address)))


def test_the_operator_decides_in_the_data_directory(tmp_path: Path) -> None:
    asked = StudioSettings(keep_unused_seconds=60)
    assert read_settings(tmp_path, asked) is asked
    (tmp_path / "studio.toml").write_text('executor = "ray"\ndevices = ["cpu"]\n[ray]\naddress = "auto"\ncpus = 2\n')
    settings = read_settings(tmp_path, asked)
    assert (settings.executor, settings.devices, settings.keep_unused_seconds) == ("ray", ("cpu",), 60)
    assert settings.ray == RaySettings(address="auto", cpus=2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('executer = "ray"', "a key that nobody knows: 'executer'"),
        ("[ray]\nadress = 'auto'", "a key that nobody knows: 'ray.adress'"),
        ("[ray]\ngpus = 3", "'ray.gpus' in .*studio.toml"),
        ("executor = ", "studio.toml can't be read"),
    ],
)
def test_slips_in_the_operators_file_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "studio.toml").write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        read_settings(tmp_path, StudioSettings())


def test_the_file_of_settings_that_ships_shows_the_defaults(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "studio.toml").read_text(encoding="utf-8")
    (tmp_path / "studio.toml").write_text(text)
    assert read_settings(tmp_path, StudioSettings()) == StudioSettings()
    (tmp_path / "studio.toml").write_text(re.sub(r"(?m)^# (?=\w+ = )", "", text))
    assert read_settings(tmp_path, StudioSettings()).ray.model_fields_set == RaySettings.model_fields.keys()


def test_every_file_of_a_run_travels() -> None:
    run = Run(
        "job", 1, SMALL, Path("c"), (Path("s1"), Path("s2")), Path("start"), (None, Path("m")), Path("p"),
        checkpoint=Path("saved"), frames=Path("frames"),
    )  # fmt: skip
    assert [path.name for path in paths_of(run)] == ["c", "s1", "s2", "start", "m", "p", "saved", "frames"]
    there = moved(run, {path: Path("there") / path for path in paths_of(run)})
    assert there.masks == (None, Path("there/m"))
    assert paths_of(there) == [Path("there") / path for path in paths_of(run)]


def test_the_nodes_cache_is_named_as_the_weights_cache_is() -> None:
    from core import weights

    assert ray_worker.CACHE_VARIABLE == weights.CACHE_VARIABLE


def test_what_killed_workers_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRAMID_STYLE_CACHE", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stage = Stage(tmp_path)
    living = ray_worker.Worker(StudioSettings(), stage)
    left = tmp_path / "pyramid-style-worker-left"
    left.mkdir()
    (left / "alive.lock").touch()
    (left / "picture").write_bytes(b"somebody's")
    asyncio.run(ray_worker.Worker(StudioSettings(), stage).close())
    assert [path.name for path in tmp_path.glob("pyramid-style-worker-*")] == [living._directory.name]


# ── With one ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def cluster() -> Iterator[SmallCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listens on loopback alone
        with small_cluster(2) as opened:
            yield opened


@pytest.fixture(autouse=True)
def _no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that happen to be on this machine don't travel."""
    monkeypatch.setenv("PYRAMID_STYLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "stage").mkdir()
    return Stage(tmp_path / "stage", STEPS)


def on_cluster(cluster: SmallCluster, **changes: Any) -> StudioSettings:
    ray = RaySettings(address=cluster.address, cpus=1, gpus=0, poll_seconds=0.1, idle_seconds=1.0)
    return QUICK.model_copy(update={"executor": "ray", "ray": ray.model_copy(update=changes)})


@contextlib.asynccontextmanager
async def ray_studio(
    directory: Path, stage: Callable[..., Any], settings: StudioSettings, nodes: int = 2
) -> AsyncIterator[tuple[Studio, RayExecutor]]:
    """A studio that sees all nodes, which must do what it has to in reasonable time."""
    (directory / "locks").mkdir(exist_ok=True)
    executor = await asyncio.to_thread(RayExecutor, directory / "locks", settings, stage)
    async with asyncio.timeout(PATIENCE), Studio.open(directory, settings, executor) as studio:
        await settled(lambda: len(studio.slots) == nodes)
        yield studio, executor


async def settled(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds of which no event tells."""
    async with asyncio.timeout(PATIENCE / 2):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def submit_content(studio: Studio, content: bytes, owner: str = "lab", settings: Settings = SMALL) -> Job:
    inputs = await studio.add_input(owner, content), await studio.add_input(owner, b"style")
    return await studio.submit(owner, inputs[0], [inputs[1]], settings)


async def notes(studio: Studio, job: Job) -> list[str]:
    return [line.note for line in await studio.transitions(job.id)]


def node_of(executor: RayExecutor, job: Job) -> str:
    """Id of the node on which a job runs."""
    staff = executor._stretches[job.id, job.attempt].staff
    assert staff is not None
    return staff.node.id


async def heard(executor: RayExecutor, job: Job) -> None:
    """Waits until the job's worker has everything that was sent to it."""
    staff = executor._stretches[job.id, job.attempt].staff
    assert staff is not None
    await staff.actor.survey.remote()


def free_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0.0))


@installed
async def test_a_job_runs_on_a_node_with_all_its_files(tmp_path: Path, cluster: SmallCluster, stage: Stage) -> None:
    async with ray_studio(tmp_path, stage, on_cluster(cluster)) as (studio, _):
        names = ("content", "style", "second style", "mask", "kept")
        content, style, second, mask, kept = [await studio.add_input("lab", name.encode()) for name in names]
        job = await studio.submit("lab", content, [style, second], SMALL, masks=[None, mask], protect=kept, film=True)
        done = await studio.wait(job.id)
        assert (done.state, done.error, done.notices) == (JobState.DONE, None, ())
        assert await studio.result_bytes(job.id) == rehearsed(b"content", b"stylesecond style", STEPS)
        assert b":" in await studio.preview_bytes(job.id)
        assert (await studio.film_path(job.id)).read_bytes().split() == [b"%d" % i for i in range(1, STEPS + 1)]
        points = [point.iteration for point in await studio.losses(job.id)]
        assert points == list(range(1, STEPS + 1)), "the chart misses nothing"
        import hashlib

        ((_, files, saved, process),) = stage.notes("began")
        assert files == hashlib.sha256(b"|".join(name.encode() for name in names)).hexdigest()
        assert saved == "0"
        assert int(process) != os.getpid()


@installed
async def test_a_cancel_stops_the_run_where_it_is_and_its_resources_are_free(
    tmp_path: Path, cluster: SmallCluster, stage: Stage
) -> None:
    stage.hold(20)
    async with ray_studio(tmp_path, stage, on_cluster(cluster)) as (studio, executor):
        job = await submit(studio)
        await settled(lambda: bool(stage.held()))
        await studio.cancel(job.id, 1)
        await heard(executor, job)
        stage.let_go(20)
        await settled(lambda: set(studio.slots.values()) == {None})
        assert (await studio.job(job.id)).progress.iteration <= 20  # type: ignore[union-attr]
        assert not stage.notes("ended")
        await settled(lambda: not executor._staff)
        await settled(lambda: free_cpus() == 2)
        assert not list((tmp_path / "checkpoints").iterdir())


@installed
async def test_a_pause_saves_and_a_resume_goes_on_from_there(
    tmp_path: Path, cluster: SmallCluster, stage: Stage
) -> None:
    stage.hold(20)
    settings = on_cluster(cluster).model_copy(update={"checkpoint_seconds": 99.0})
    async with ray_studio(tmp_path, stage, settings) as (studio, executor):
        job = await submit(studio)
        await settled(lambda: bool(stage.held()))
        await studio.pause(job.id)
        await heard(executor, job)
        stage.let_go(20)
        await settled(lambda: set(studio.slots.values()) == {None})
        assert (await studio.job(job.id)).checkpoint_iteration == 20
        await studio.resume(job.id)
        assert (await studio.wait(job.id)).state is JobState.DONE
        assert await studio.result_bytes(job.id) == EXPECTED
        saved = [int(size) for _, _, size, _ in stage.notes("began")]
        assert saved[0] == 0
        assert saved[1] > 0


@installed
async def test_new_weights_reach_a_run_on_its_node(tmp_path: Path, cluster: SmallCluster, stage: Stage) -> None:
    stage.hold(20)
    async with ray_studio(tmp_path, stage, on_cluster(cluster)) as (studio, executor):
        job = await submit(studio)
        await settled(lambda: bool(stage.held()))
        changes = {"loss": {"content_weight": 0.5}}
        await studio.steer(job.id, 1, changes, "content up")
        await heard(executor, job)
        stage.let_go(20)
        done = await studio.wait(job.id)
        (wish,) = done.steering
        assert wish.iteration == 20
        assert await studio.result_bytes(job.id) == rehearsed(b"content", b"style", STEPS, {20: changes})


@installed
async def test_mistakes_and_faults_come_back_as_what_they_are(
    tmp_path: Path, cluster: SmallCluster, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async with ray_studio(tmp_path, stage, on_cluster(cluster)) as (studio, _):
        faulty = await submit_content(studio, b"faulty")
        failed = await studio.wait(faulty.id)
        assert failed.state is JobState.FAILED
        assert "something went wrong in the studio" in str(failed.error)
        assert "of the node's own" in caplog.text
        assert "in _act" in caplog.text, "the log has the place on the node"
        stage.hold(20)
        greedy = await submit_content(studio, b"greedy")
        await settled(lambda: _saved(studio, greedy))
        stage.let_go(20)
        done = await studio.wait(greedy.id)
        assert (done.state, len(done.notices)) == (JobState.DONE, 1)
        assert "computing it in smaller pieces" in done.notices[0].text
        saved = [int(size) for _, _, size, _ in stage.notes("began")]
        assert saved[1] == 0
        assert saved[2] > 0, "on the same node, from where it was saved last"


@installed
async def test_a_broken_picture_is_refused_at_once(tmp_path: Path, cluster: SmallCluster) -> None:
    async with ray_studio(tmp_path, refusing, on_cluster(cluster)) as (studio, _):
        with pytest.raises(ImageError, match="torn") as caught:
            await submit(studio)
        assert caught.value.remedy == "Glue it"


# ── What dies ────────────────────────────────────────────────────────────────────────────────────────────────────────


@installed
async def test_a_node_that_goes_away_is_a_pause_and_no_error(
    tmp_path: Path, cluster: SmallCluster, stage: Stage
) -> None:
    extra = cluster.add()
    stage.hold(20)
    async with ray_studio(tmp_path, stage, on_cluster(cluster), nodes=3) as (studio, executor):
        jobs = [await submit(studio, owner) for owner in "abc"]
        await settled(lambda: sum(stage.held().values()) == 3)
        await settled(lambda: all(_saved(studio, job) for job in jobs))
        unlucky = next(job for job in jobs if node_of(executor, job) == extra.node_id)
        await asyncio.to_thread(cluster.kill, extra)
        await settled(lambda: len(studio.slots) == 2)
        workers = [int(process) for *_, process in stage.notes("held")][:3]
        await settled(lambda: sum(map(_lives, workers)) == 2)  # what was cut off ends, too
        stage.let_go(20)
        for job in jobs:
            done = await studio.wait(job.id)
            assert (done.state, done.error, done.notices) == (JobState.DONE, None, ())
            assert await studio.result_bytes(job.id) == EXPECTED
        lost = await studio.job(unlucky.id)
        assert (lost.attempt, lost.crashes, lost.machines_lost) == (1, 0, 1)
        states = [line.after for line in await studio.transitions(unlucky.id)]
        assert states == ["queued", "running", "queued", "running", "done"]
        assert "the machine" in (await notes(studio, unlucky))[2]
        assert int(stage.notes("began")[-1][2]) > 0, "it went on from where it was saved"
        ended = Counter(name for name, _ in stage.notes("ended"))
        assert sum(ended.values()) == 3, "none ran twice to the end"


def _saved(studio: Studio, job: Job) -> bool:
    return studio._scheduler._jobs[job.id].checkpoint_iteration >= 1


@installed
async def test_a_job_that_takes_its_worker_down_does_so_twice(
    tmp_path: Path, cluster: SmallCluster, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    settings = on_cluster(cluster).model_copy(update={"checkpoint_seconds": 99.0})
    async with ray_studio(tmp_path, stage, settings) as (studio, _):
        deadly, other = await submit_content(studio, b"deadly"), await submit(studio, "other")
        failed = await studio.wait(deadly.id)
        assert failed.state is JobState.FAILED
        assert str(failed.error).startswith("the process that computed it on ")
        assert "ended unexpectedly, 2 times in a row without getting any further" in str(failed.error)
        assert "worker process has died" in caplog.text, "the operator's log has what Ray says"
        assert (await studio.wait(other.id)).state is JobState.DONE
        after = await submit(studio)
        assert (await studio.wait(after.id)).state is JobState.DONE


@installed
async def test_a_poisoned_device_ends_its_worker_and_nothing_else(
    tmp_path: Path, cluster: SmallCluster, stage: Stage
) -> None:
    settings = on_cluster(cluster).model_copy(update={"checkpoint_seconds": 99.0})
    async with ray_studio(tmp_path, stage, settings) as (studio, _):
        job = await submit_content(studio, b"poisonous")
        assert "illegal memory access" in str((await studio.wait(job.id)).error)
        assert studio.fatal is None
        processes = {process for *_, process in stage.notes("began")}
        assert len(processes) == 2, "the second try was in a new process"


@installed
async def test_a_worker_that_dies_while_it_has_nothing_to_do_is_replaced(
    tmp_path: Path, cluster: SmallCluster, stage: Stage
) -> None:
    async with ray_studio(tmp_path, stage, on_cluster(cluster, idle_seconds=99.0)) as (studio, executor):
        await studio.wait((await submit(studio)).id)
        for process in {int(process) for *_, process in stage.notes("opened")}:
            os.kill(process, signal.SIGKILL)
        await settled(lambda: not executor._staff)
        assert (await studio.wait((await submit(studio)).id)).state is JobState.DONE


@installed
def test_the_head_is_killed_and_the_next_one_goes_on(tmp_path: Path, cluster: SmallCluster, stage: Stage) -> None:
    stage.hold(20)
    head = Head(tmp_path, cluster.address, stage)
    _wait(lambda: sum(stage.held().values()) == 2)
    _wait(lambda: len(list((tmp_path / "checkpoints").glob("*-1"))) == 2)
    workers = {int(process) for *_, process in stage.notes("held")}
    head.kill()
    _wait(lambda: not any(map(_lives, workers)), "Ray ends the workers of a head that died")
    stage.let_go(20)
    assert Head(tmp_path, cluster.address, stage).finish() == 0
    store = Store(tmp_path)
    jobs = store.jobs()
    assert [job.state for job in jobs] == [JobState.DONE] * 3
    for job in jobs:
        assert job.result is not None
        content = b"content " + job.tags["number"].encode()
        assert store.files.read("results", job.result.file) == rehearsed(content, b"style", STEPS)
        assert [line.after for line in store.transitions(job.id)].count(JobState.DONE) == 1
        assert (job.crashes, job.error) == (0, None)
    store.close()
    ended = Counter(name for name, _ in stage.notes("ended"))
    assert sorted(ended.values()) == [1, 1, 1], "none ran twice to the end, none was lost"
    resumed = [int(size) for _, _, size, _ in stage.notes("began")]
    assert len(resumed) == 5
    assert sum(size > 0 for size in resumed) == 2, "from where they were saved"


class Head:
    """A process that submits three jobs, under the same keys every time, and works until they are done."""

    def __init__(self, data: Path, address: str, stage: Stage) -> None:
        command = f"from tests.test_ray import serve; serve({str(data)!r}, {address!r}, {str(stage.directory)!r})"
        self._process = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def finish(self) -> int:
        return self._process.wait(timeout=PATIENCE)


def serve(data: str, address: str, stage: str) -> None:
    """What a `Head` does."""

    async def work() -> None:
        settings = QUICK.model_copy(
            update={"executor": "ray", "ray": RaySettings(address=address, cpus=1, gpus=0, poll_seconds=0.1)}
        )
        async with ray_studio(Path(data), Stage(Path(stage), STEPS), settings) as (studio, _):
            inputs = [await studio.add_input("lab", b"content %d" % number) for number in range(3)]
            style = await studio.add_input("lab", b"style")
            jobs = [
                await studio.submit("lab", content, [style], SMALL, key=f"job {number}", tags={"number": str(number)})
                for number, content in enumerate(inputs)
            ]
            await asyncio.gather(*(studio.wait(job.id) for job in jobs))

    asyncio.run(work())


def _wait(condition: Callable[[], bool], why: str = "") -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, why
        time.sleep(0.02)


def _lives(process: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    return False


# ── Many ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@installed
async def test_two_hundred_short_jobs_of_twenty_owners(tmp_path: Path, cluster: SmallCluster, stage: Stage) -> None:
    roomy = on_cluster(cluster).model_copy(update={"pending_per_owner": 200, "pending_in_all": 200})
    quick = Stage(stage.directory, steps=3)
    async with ray_studio(tmp_path, quick, roomy) as (studio, executor):
        content, style = await studio.add_input("lab", b"content"), await studio.add_input("lab", b"style")
        jobs = [await studio.submit(f"owner {number % 20}", content, [style], SMALL) for number in range(200)]
        for job in jobs:
            assert (await studio.wait(job.id)).state is JobState.DONE
        assert len(stage.notes("ended")) == 200, "each exactly once"
        processes = Counter(process for _, process in stage.notes("ended"))
        assert len(processes) == 2, "on both nodes, whose workers stay while there is work"
        assert len(executor._depot._kept) == 2, "the same pictures were put into the object store once"


@installed
async def test_the_loop_stays_free_while_workers_come_and_jobs_run(
    tmp_path: Path, cluster: SmallCluster, stage: Stage
) -> None:
    async with ray_studio(tmp_path, Stage(stage.directory, STEPS, 0.01), on_cluster(cluster, idle_seconds=0)) as (
        studio,
        _,
    ):
        jobs = [await submit(studio) for _ in range(4)]
        waiting = asyncio.gather(*(studio.wait(job.id) for job in jobs))
        delays = []
        while not waiting.done():
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            delays.append(time.perf_counter() - began - 0.005)
        await waiting
        assert len(delays) > 50
        assert sorted(delays)[int(0.95 * len(delays))] < 0.1


# ── Weights, nodes, demand ───────────────────────────────────────────────────────────────────────────────────────────


@installed
async def test_weights_reach_each_node_once(tmp_path: Path, cluster: SmallCluster, stage: Stage) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(os.urandom(300_000))
    import hashlib

    name = hashlib.sha256(weights.read_bytes()).hexdigest()
    settings = on_cluster(cluster, idle_seconds=0).model_copy(update={"weights": weights})
    stage.hold(20)
    async with ray_studio(tmp_path, stage, settings) as (studio, executor):
        first = [await submit(studio, owner) for owner in "ab"]
        await settled(lambda: sum(stage.held().values()) == 2)
        nodes = [cluster.node(node_of(executor, job)) for job in first]
        kept = [cluster.sent(node) for node in nodes]
        assert [list(files) for files in kept] == [[name], [name]]
        stage.let_go(20)
        for job in first:
            await studio.wait(job.id)
        await settled(lambda: not executor._staff)
        for job in [await submit(studio, owner) for owner in "ab"]:
            await studio.wait(job.id)
        assert len({process for *_, process in stage.notes("began")}) > 2, "by other workers on the same nodes"
        assert [cluster.sent(node) for node in nodes] == kept
        assert all(given.endswith("given.safetensors") for given, _ in stage.notes("opened"))


@installed
async def test_slots_follow_the_nodes_and_the_autoscaler_is_told(
    tmp_path: Path, cluster: SmallCluster, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[dict[str, float], int]] = []
    monkeypatch.setattr(on_ray, "request", lambda bundle, count: asked.append((bundle, count)))
    stage.hold(20)
    async with ray_studio(tmp_path, stage, on_cluster(cluster, most_jobs=4)) as (studio, _):
        jobs = [await submit(studio) for _ in range(5)]
        await settled(lambda: asked[-1:] == [({"CPU": 1.0}, 4)])  # of five, as many as the operator allows
        extra = cluster.add()
        await settled(lambda: sum(stage.held().values()) == 3)
        assert len(studio.slots) == 3
        stage.let_go(20)
        for job in jobs:
            assert (await studio.wait(job.id)).state is JobState.DONE
        await settled(lambda: asked[-1] == ({"CPU": 1.0}, 0))
        await asyncio.to_thread(cluster.kill, extra)
        await settled(lambda: len(studio.slots) == 2)


@installed
async def test_a_studio_without_any_node_takes_jobs_and_asks_for_nodes(
    tmp_path: Path, cluster: SmallCluster, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "nodes", list)
    asked: list[int] = []
    monkeypatch.setattr(on_ray, "request", lambda bundle, count: asked.append(count))
    async with ray_studio(tmp_path, stage, on_cluster(cluster), nodes=0) as (studio, _):
        job = await submit(studio)
        assert (job.width, job.network) == (256, "compact")
        await settled(lambda: asked == [1])
        monkeypatch.setattr(on_ray, "nodes", ray_cluster.nodes)
        assert (await studio.wait(job.id)).state is JobState.DONE


@installed
async def test_a_node_with_another_version_gets_no_job(
    tmp_path: Path,
    cluster: SmallCluster,
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("core.__version__", "999")
    async with ray_studio(tmp_path, stage, on_cluster(cluster), nodes=0) as (studio, _):
        await submit(studio)
        await settled(lambda: "not 999" in caplog.text)
        assert not studio.slots
        assert not stage.notes("began")


@installed
async def test_of_two_programs_one_at_a_time_has_a_slot(tmp_path: Path, cluster: SmallCluster, stage: Stage) -> None:
    settings = on_cluster(cluster, idle_seconds=0.2)
    async with (
        ray_studio(tmp_path, stage, settings) as (lab, _),
        ray_studio(tmp_path, stage, settings) as (bot, _),
    ):
        jobs = [await submit(studio, f"owner {number}") for number, studio in enumerate([lab, bot] * 6)]
        for job in jobs:
            assert (await lab.wait(job.id)).state is JobState.DONE
        assert len(stage.notes("ended")) == 12


# ── The real engine ──────────────────────────────────────────────────────────────────────────────────────────────────


@installed
async def test_a_node_paints_what_this_machine_paints(tmp_path: Path, cluster: SmallCluster) -> None:
    import torch

    from core import images
    from core.studio.executors.local import TorchBackend
    from core.transfer import Transfer

    few = Settings(
        levels=0, network="compact", start="content", optimizer=OptimizerSettings(iterations=4), precision="float32"
    )
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    content = images.encode(torch.stack([y, x, (torch.sin(6 * x) * torch.cos(5 * y) + 1) / 2])[None])
    style = images.encode(torch.stack([(torch.sin(40 * (x + y)) + 1) / 2, (torch.sin(31 * x) + 1) / 2, y])[None])
    transfer = Transfer(images.read(content).pixels, [images.read(style).pixels], few, device="cpu")
    *_, last = transfer.steps()
    async with ray_studio(tmp_path, TorchBackend, on_cluster(cluster)) as (studio, _):
        inputs = await studio.add_input("lab", content), await studio.add_input("lab", style)
        job = await studio.submit("lab", inputs[0], [inputs[1]], few)
        assert (job.width, job.height, job.network) == (384, 256, "compact")
        done = await studio.wait(job.id)
        assert (done.state, done.error) == (JobState.DONE, None)
        assert done.device is not None
        assert done.device.startswith("CPU, 1 threads")
        painted = images.read(await studio.result_bytes(job.id)).pixels
        assert images.read_recipe(await studio.result_bytes(job.id))["settings"] == few.model_dump(mode="json")
        assert images.read(await studio.preview_bytes(job.id)).format == "JPEG"
    assert (painted - images.read(transfer.encode(last)).pixels).abs().max() <= 1 / 255


# ── Of this machine alone ────────────────────────────────────────────────────────────────────────────────────────────

ALONE = f"""
import asyncio, os, pathlib, psutil, signal, sys
from core.studio import Studio, StudioSettings
from core.studio.executors.on_ray import RayExecutor
from core.studio.jobs import RaySettings
from tests.ray_doubles import Stage
from tests.studio_doubles import QUICK, rehearsed, submit

async def main(data):
    ray = RaySettings(cpus=1, gpus=0, store_bytes={STORE_BYTES})
    settings = QUICK.model_copy(update={{"executor": "ray", "ray": ray}})
    (data / "locks").mkdir()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    executor = await asyncio.to_thread(RayExecutor, data / "locks", settings, Stage(data, {STEPS}))
    async with Studio.open(data, settings, executor) as studio:
        job = await studio.wait((await submit(studio)).id)
        assert await studio.result_bytes(job.id) == rehearsed(b"content", b"style", {STEPS})
        children = psutil.Process().children(recursive=True)
        assert any("raylet" in child.name() for child in children)
        for process in [psutil.Process(), *children]:
            for connection in process.net_connections("inet"):
                assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), (process.name(), connection)
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        assert signal.alarm(0) == 0, "nothing of Ray's is going to abort the saving of jobs"
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, alive

asyncio.run(main(pathlib.Path(sys.argv[1])))
print("quiet")
"""


@installed
def test_without_an_address_a_ray_of_this_machine_alone_comes_and_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "quiet\n", "")
