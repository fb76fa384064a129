"""Computing in threads beside the loop: what crosses, what stops, what goes wrong."""

import asyncio
import contextlib
import dataclasses
import gc
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from core.config import OptimizerSettings, Settings
from core.errors import DeviceError, ImageError, MemoryLimitError
from core.studio import Job, Studio
from core.studio.executors.local import LocalExecutor, Mailbox, TorchBackend
from core.studio.jobs import (
    Checkpoint,
    JobState,
    Losses,
    LossPoint,
    Output,
    PoisonedDeviceError,
    Preview,
    Progress,
    Remark,
    Run,
    Slot,
    Steered,
    StudioSettings,
    Update,
    Wish,
)
from tests.studio_doubles import QUICK, SMALL, Rehearsal, open_studio, progress, rehearsed, submit

SLOT = Slot("cpu", "cpu", "test")
EXPECTED = rehearsed(b"content", b"style", 60)


def executor_of(directory: Path, backend: Rehearsal, settings: StudioSettings = QUICK) -> LocalExecutor:
    (directory / "locks").mkdir(exist_ok=True)
    return LocalExecutor(directory / "locks", settings, backend)


def run_of(directory: Path, settings: Settings = SMALL, checkpoint: bytes | None = None) -> Run:
    content, style, saved = (directory / name for name in ("content", "style", "checkpoint"))
    content.write_bytes(b"content")
    style.write_bytes(b"style")
    if checkpoint is not None:
        saved.write_bytes(checkpoint)
    return Run("job", 1, settings, content, (style,), checkpoint=saved)


async def updates_of(executor: LocalExecutor, run: Run) -> list[Update]:
    async with asyncio.timeout(10):
        return [update async for update in executor.start(run, SLOT)]


def remarks(updates: list[Update]) -> list[str]:
    return [update.text for update in updates if isinstance(update, Remark)]


# ── The mailbox ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_busy_loop_gets_the_latest_only_and_all_that_must_not_be_lost() -> None:
    mailbox = Mailbox(asyncio.get_running_loop())
    points = [LossPoint(iteration=number, seconds=0.0, loss=1.0, levels=()) for number in range(100)]

    def thread() -> None:
        for number in range(100):
            mailbox.put(progress(number, 100))
            mailbox.put(Preview(b"%d" % number))
            mailbox.put(Checkpoint(b"%d" % number, number))
            mailbox.put(Losses((points[number],)))
        mailbox.put(Remark("that was all"))
        mailbox.put(Output(b"picture", "png", 1, 1))
        mailbox.end()

    await asyncio.to_thread(thread)  # this coroutine, the mailbox's reader, has been away all the time
    updates = [update async for update in mailbox.updates()]
    kinds = [type(update) for update in updates]
    assert kinds == [Progress, Preview, Checkpoint, *[Losses] * 100, Remark, Output]
    assert updates[:3] == [progress(99, 100), Preview(b"99"), Checkpoint(b"99", 99)]


async def test_what_came_before_an_error_is_given_out_before_it() -> None:
    mailbox = Mailbox(asyncio.get_running_loop())
    mailbox.put(Remark("careful"))
    mailbox.end(ValueError("no"))
    seen = []
    with pytest.raises(ValueError, match="no"):
        async for update in mailbox.updates():
            seen.append(update)
    assert seen == [Remark("careful")]


async def test_a_busy_loop_is_rung_once() -> None:
    loop = asyncio.get_running_loop()
    rings = 0

    class Bell:
        def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
            nonlocal rings
            rings += 1
            loop.call_soon_threadsafe(callback)

    mailbox = Mailbox(Bell())  # type: ignore[arg-type]
    for number in range(100):
        mailbox.put(progress(number, 100))
    assert rings == 1
    updates = mailbox.updates()
    await anext(updates)
    mailbox.put(progress(100, 100))
    assert rings == 2
    mailbox.end()
    assert [update async for update in updates] == [progress(100, 100)]


def test_a_thread_outlives_a_closed_loop_quietly() -> None:
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    mailbox.put(progress(1))
    mailbox.end()


# ── One run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_run_tells_its_progress_and_ends_with_the_picture(tmp_path: Path) -> None:
    updates = await updates_of(executor_of(tmp_path, Rehearsal()), run_of(tmp_path))
    told = [update.iteration for update in updates if isinstance(update, Progress)]
    assert told == sorted(told)
    assert told[-1] == 60
    points = [point.iteration for update in updates if isinstance(update, Losses) for point in update.points]
    assert points == list(range(1, 61)), "the chart misses nothing"
    assert updates[-1] == Output(EXPECTED, "png", 256, 256)
    assert {Preview, Checkpoint} <= {type(update) for update in updates}


async def test_a_long_run_has_a_chart_of_bounded_size(tmp_path: Path) -> None:
    rarely = QUICK.model_copy(update={"preview_seconds": 9.0, "checkpoint_seconds": 9.0, "progress_seconds": 9.0})
    updates = await updates_of(executor_of(tmp_path, Rehearsal(steps=20_000), rarely), run_of(tmp_path))
    points = [point for update in updates if isinstance(update, Losses) for point in update.points]
    assert len(points) == 1000
    assert len([update for update in updates if isinstance(update, Preview)]) == 1, "the first, at once"
    assert not [update for update in updates if isinstance(update, Checkpoint)]


async def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    backend = Rehearsal()
    half = b"40:" + rehearsed(b"content", b"style", 40)
    updates = await updates_of(executor_of(tmp_path, backend), run_of(tmp_path, checkpoint=half))
    assert updates[-1] == Output(EXPECTED, "png", 256, 256)
    assert backend.evaluations == 20


async def test_a_corrupt_checkpoint_is_told_and_the_run_begins_again(tmp_path: Path) -> None:
    backend = Rehearsal()
    updates = await updates_of(executor_of(tmp_path, backend), run_of(tmp_path, checkpoint=b"40:torn"))
    assert updates[-1] == Output(EXPECTED, "png", 256, 256)
    assert backend.evaluations == 60
    assert remarks(updates) == [
        "What was saved of this job can't be used (the checkpoint is damaged); it begins again."
    ]


async def test_a_checkpoint_that_cannot_be_read_is_like_a_corrupt_one(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    updates = await updates_of(executor_of(tmp_path, Rehearsal()), run)
    assert updates[-1] == Output(EXPECTED, "png", 256, 256)
    assert "it begins again" in remarks(updates)[0]


@dataclass
class Gate:
    """Holds a run in one of its evaluations until a test lets it go."""

    iteration: int

    def __post_init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, run: Run, iteration: int) -> None:
        if iteration == self.iteration:
            self.reached.set()
            assert self.opened.wait(10)


@pytest.mark.parametrize("keep", [True, False])
async def test_cancel_takes_effect_within_one_evaluation(tmp_path: Path, keep: bool) -> None:
    gate = Gate(20)
    backend = Rehearsal(hook=gate)
    executor = executor_of(tmp_path, backend, QUICK.model_copy(update={"checkpoint_seconds": 99.0}))
    collecting = asyncio.create_task(updates_of(executor, run_of(tmp_path)))
    await asyncio.to_thread(gate.reached.wait, 10)
    executor.cancel("job", 1, keep=keep)
    gate.opened.set()
    updates = await collecting
    assert backend.evaluations == 20, "the one that it was in, and none after it"
    assert backend.closed == 1
    told = [update.iteration for update in updates if isinstance(update, Progress)]
    assert told[-1] >= (20 if keep else 1)
    saved = [update for update in updates if isinstance(update, Checkpoint)]
    assert saved == ([Checkpoint(b"20:" + rehearsed(b"content", b"style", 20), 20)] if keep else [])
    assert not [update for update in updates if isinstance(update, Output)]


async def test_cancel_of_another_attempt_or_job_does_nothing(tmp_path: Path) -> None:
    gate = Gate(20)
    executor = executor_of(tmp_path, Rehearsal(hook=gate))
    collecting = asyncio.create_task(updates_of(executor, run_of(tmp_path)))
    await asyncio.to_thread(gate.reached.wait, 10)
    executor.cancel("job", 2, keep=False)
    executor.cancel("another", 1, keep=False)
    gate.opened.set()
    assert (await collecting)[-1] == Output(EXPECTED, "png", 256, 256)
    executor.cancel("job", 1, keep=False)  # it has ended


async def test_a_checkpoint_is_made_when_the_one_before_is_safe(tmp_path: Path) -> None:
    """However slow the disk, at most one is being written; they can be large."""
    gate = Gate(50)
    backend = Rehearsal(hook=gate)
    async with asyncio.timeout(10):
        async for update in executor_of(tmp_path, backend).start(run_of(tmp_path), SLOT):
            if isinstance(update, Checkpoint) and not gate.opened.is_set():
                await asyncio.to_thread(gate.reached.wait, 10)  # writing takes as long as 50 steps
                assert backend.checkpoints == 1
                gate.opened.set()
    assert backend.checkpoints > 1


async def test_computing_happens_in_a_thread_named_after_its_slot(tmp_path: Path) -> None:
    threads = set()
    backend = Rehearsal(hook=lambda run, iteration: threads.add(threading.current_thread()))
    await updates_of(executor_of(tmp_path, backend), run_of(tmp_path))
    assert {thread.name for thread in threads} == {"cpu"}
    assert threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


# ── Memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Picture:
    """Something large, whose end can be seen, and that only a collector of garbage finds."""

    def __init__(self) -> None:
        self.itself = self


def greedy(limit: float, seen: list[weakref.ref[Picture]], alive: list[int]) -> Callable[[Run, int], None]:
    """A hook that runs out of memory at iteration 20 unless the run may use less than `limit` GiB."""

    def hook(run: Run, iteration: int) -> None:
        alive.append(sum(reference() is not None for reference in seen))
        picture = Picture()
        seen.append(weakref.ref(picture))
        if iteration == 20 and (run.settings.max_memory or 99.0) >= limit:
            raise MemoryError("no more")

    return hook


@pytest.mark.parametrize(("max_memory", "expected"), [(None, "4.0 GiB"), (6.0, "3.0 GiB")])
async def test_out_of_memory_is_tried_once_more_in_smaller_pieces(
    tmp_path: Path, max_memory: float | None, expected: str
) -> None:
    seen, alive = list[weakref.ref[Picture]](), list[int]()
    backend = Rehearsal(hook=greedy(5.0, seen, alive))
    run = run_of(tmp_path, SMALL.changed({"max_memory": max_memory}))
    updates = await updates_of(executor_of(tmp_path, backend), run)
    assert updates[-1] == Output(EXPECTED, "png", 256, 256)
    assert remarks(updates) == [f"Memory ran out on cpu; computing it in smaller pieces ({expected})."]
    assert alive[20] == 0, "before the second try, everything of the first is gone"
    assert backend.cleaned == ["cpu", "cpu"]


async def test_out_of_memory_twice_is_refused_and_the_next_job_runs(tmp_path: Path) -> None:
    backend = Rehearsal(hook=greedy(0.0, [], []))
    executor = executor_of(tmp_path, backend)
    with pytest.raises(MemoryLimitError, match=r"twice.*Choose level 1"):
        await updates_of(executor, run_of(tmp_path, Settings(levels=2)))
    backend._hook = lambda run, iteration: None
    assert (await updates_of(executor, run_of(tmp_path)))[-1] == Output(EXPECTED, "png", 256, 256)


async def test_an_error_holds_no_picture(tmp_path: Path) -> None:
    pictures: list[weakref.ref[Picture]] = []

    def failing(run: Run, iteration: int) -> None:
        picture = Picture()
        pictures.append(weakref.ref(picture))
        raise ValueError("a bug")

    try:
        await updates_of(executor_of(tmp_path, Rehearsal(hook=failing)), run_of(tmp_path))
    except ValueError as error:
        gc.collect()
        assert pictures[0]() is None
        lines = traceback.extract_tb(error.__traceback__)
        assert "failing" in [line.name for line in lines], "but the log still has its line"


# ── Devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_error_on_a_poisoned_device_is_told_as_that(tmp_path: Path) -> None:
    def illegal(run: Run, iteration: int) -> None:
        backend.poison = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    backend = Rehearsal(hook=illegal)
    with pytest.raises(PoisonedDeviceError, match="illegal memory access"):
        await updates_of(executor_of(tmp_path, backend), run_of(tmp_path))


async def test_a_poisoned_device_brings_the_studio_to_an_end_and_the_next_one_goes_on(tmp_path: Path) -> None:
    def illegal(run: Run, iteration: int) -> None:
        backend.poison = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    backend = Rehearsal(hook=illegal)
    async with asyncio.timeout(30), local_studio(tmp_path, backend) as studio:
        job = await submit(studio)
        assert "illegal" in str(await studio.until_fatal())
    async with asyncio.timeout(30), local_studio(tmp_path, Rehearsal()) as studio:
        assert (await studio.wait(job.id)).state is JobState.DONE


async def test_processes_take_turns_on_a_device(tmp_path: Path) -> None:
    mine, theirs = executor_of(tmp_path, Rehearsal()), executor_of(tmp_path, Rehearsal())
    assert mine.reserve(SLOT)
    assert not theirs.reserve(SLOT)
    mine.release(SLOT)
    assert theirs.reserve(SLOT)
    await theirs.close()
    assert mine.reserve(SLOT), "closing lets go"
    await mine.close()


async def test_a_device_that_another_process_has_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    lock = FileLock(tmp_path / "locks" / "device-cpu.lock", thread_local=False)
    lock.acquire()
    async with asyncio.timeout(30), local_studio(tmp_path, Rehearsal()) as studio:
        job = await submit(studio)
        await asyncio.sleep(4 * QUICK.poll_seconds)
        assert (await studio.job(job.id)).state is JobState.QUEUED
        lock.release()
        assert (await studio.wait(job.id)).state is JobState.DONE


async def test_two_studios_on_one_device_never_compute_at_once(tmp_path: Path) -> None:
    computing, most = 0, 0
    counting = threading.Lock()

    def hook(run: Run, iteration: int) -> None:
        nonlocal computing, most
        with counting:
            computing += iteration == 1
            most = max(most, computing)
            computing -= iteration == 60

    async with (
        asyncio.timeout(60),
        local_studio(tmp_path, Rehearsal(hook=hook)) as lab,
        local_studio(tmp_path, Rehearsal(hook=hook)) as bot,
    ):
        jobs = [await submit(studio, owner) for studio, owner in [(lab, "lab"), (bot, "tg:1")] * 6]
        done = await asyncio.gather(*(lab.wait(job.id) for job in jobs))
    assert {job.state for job in done} == {JobState.DONE}
    assert most == 1


@contextlib.asynccontextmanager
async def local_studio(directory: Path, backend: Rehearsal, settings: StudioSettings = QUICK) -> AsyncIterator[Studio]:
    async with open_studio(directory, executor_of(directory, backend, settings), settings) as studio:
        yield studio


# ── The loop stays free ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_threads_share_the_interpreter_in_small_turns_and_only_while_open(tmp_path: Path) -> None:
    before = sys.getswitchinterval()
    executor = executor_of(tmp_path, Rehearsal())
    assert sys.getswitchinterval() <= 0.001
    await executor.close()
    assert sys.getswitchinterval() == before


def burn(run: Run, iteration: int) -> None:
    """Holds the interpreter as torch does: bursts of Python between long operations that let go of it."""
    for _ in range(20):
        end = time.perf_counter() + 0.002
        while time.perf_counter() < end:
            pass
        time.sleep(0.002)


async def delays_while(busy: asyncio.Task[Job]) -> list[float]:
    """How late the loop is whenever it should wake after 5 ms."""
    delays = []
    while not busy.done():
        began = time.perf_counter()
        await asyncio.sleep(0.005)
        delays.append(time.perf_counter() - began - 0.005)
    return sorted(delays)


async def test_the_loop_stays_free_while_jobs_run_at_full_tilt(tmp_path: Path) -> None:
    """Two jobs, previews and checkpoints as often as they come, fifty pages: the 99th percentile is under 50 ms."""
    slots = [Slot(f"cpu.{number}", "cpu", "test") for number in range(2)]
    backend = Rehearsal(steps=40, hook=burn, slots=slots)
    async with asyncio.timeout(60), local_studio(tmp_path, backend) as studio:
        pages = [asyncio.create_task(_read(studio)) for _ in range(50)]
        jobs = [await submit(studio), await submit(studio)]
        delays = await delays_while(asyncio.create_task(studio.wait(jobs[1].id)))
        assert (await studio.wait(jobs[0].id)).state is JobState.DONE
    await asyncio.gather(*pages)
    assert len(delays) > 100
    assert delays[int(0.99 * len(delays))] < 0.050


async def _read(studio: Studio) -> None:
    with studio.subscribe() as events:
        async for event in events:
            assert event.job is None or event.job.public()


# ── The real engine ──────────────────────────────────────────────────────────────────────────────────────────────────

FEW = Settings(
    levels=0, network="compact", start="content", optimizer=OptimizerSettings(iterations=8), precision="float32"
)


@pytest.fixture(scope="module")
def pictures() -> tuple[bytes, bytes]:
    """A content of soft hills and a style of stripes, as files."""
    import torch

    from core import images

    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    content = torch.stack([y, x, (torch.sin(6 * x) * torch.cos(5 * y) + 1) / 2])[None]
    style = torch.stack([(torch.sin(40 * (x + y)) + 1) / 2, (torch.sin(31 * x) + 1) / 2, y])[None]
    return images.encode(content), images.encode(style)


@contextlib.asynccontextmanager
async def real_studio(directory: Path) -> AsyncIterator[Studio]:
    settings = QUICK.model_copy(update={"devices": ("cpu",), "preview_side": 100})
    async with asyncio.timeout(120), Studio.open(directory, settings) as studio:
        yield studio


async def test_the_real_engine_paints_what_it_paints_without_a_studio(
    tmp_path: Path, pictures: tuple[bytes, bytes]
) -> None:
    from core import images
    from core.transfer import Transfer

    content, style = pictures
    transfer = Transfer(images.read(content).pixels, [images.read(style).pixels], FEW, device="cpu")
    *_, last = transfer.steps()
    async with real_studio(tmp_path) as studio:
        inputs = await studio.add_input("lab", content), await studio.add_input("lab", style)
        job = await studio.submit("lab", inputs[0], [inputs[1]], FEW)
        assert (job.width, job.height, job.network) == (384, 256, "compact")
        paused = False
        with studio.subscribe(job_id=job.id) as events:
            async for event in events:
                if event.job and event.job.progress and event.job.progress.iteration >= 1 and not paused:
                    paused = True
                    await studio.pause(job.id)
                    await studio.resume(job.id)
                if event.job and not event.job.state.pending:
                    break
        done = await studio.job(job.id)
        assert (done.state, done.error, done.notices) == (JobState.DONE, None, ())
        assert [line.note for line in await studio.transitions(job.id)].count("paused") == 1
        picture = await studio.result_bytes(job.id)
        preview = images.read(await studio.preview_bytes(job.id))
        points = await studio.losses(job.id)
    painted, expected = images.read(picture).pixels, images.read(transfer.encode(last)).pixels
    assert (painted - expected).abs().mean() < 1 / 255, "also where it was paused in the middle"
    assert images.read_recipe(picture)["settings"] == FEW.model_dump(mode="json")
    assert (preview.format, tuple(preview.pixels.shape[-2:])) == ("JPEG", (67, 100))
    assert [point.iteration for point in points] == list(range(9))
    assert points[-1].loss < points[0].loss
    assert done.progress is not None
    assert (done.progress.fraction, done.progress.levels[0].level) == (1.0, 0)


async def test_the_real_engine_is_steered_and_its_recipe_repeats_it(
    tmp_path: Path, pictures: tuple[bytes, bytes]
) -> None:
    import torch

    from core import images
    from core.steering import parse
    from core.transfer import Transfer

    content, style = pictures
    half = torch.zeros(1, 1, 16, 16)
    half[..., :8] = 1
    mask = images.encode(half.expand(1, 3, 16, 16))
    changes = {"loss": {"content_weight": 1.0}}
    async with real_studio(tmp_path) as studio:
        first, second, region = [await studio.add_input("lab", data) for data in (content, style, mask)]
        job = await studio.submit("lab", first, [second], FEW, masks=[region], film=True)
        asked = False
        with studio.subscribe(job_id=job.id) as events:
            async for event in events:
                if event.job and event.job.progress and event.job.progress.iteration >= 2 and not asked:
                    asked = True
                    await studio.steer(job.id, 1, changes, "content up")
                if event.job and not event.job.state.pending:
                    break
        done = await studio.job(job.id)
        assert (done.state, done.error) == (JobState.DONE, None)
        picture = await studio.result_bytes(job.id)
        film = await studio.film_path(job.id)
        assert film.stat().st_size > 1000
    (wish,) = done.steering
    assert wish.iteration is not None and 2 <= wish.iteration < 8
    steering = parse(images.read_recipe(picture)["steering"])
    assert [(each.iteration, each.evaluation, each.changes) for each in steering] == [
        (wish.iteration, wish.evaluation, changes)
    ]
    again = Transfer(
        images.read(content).pixels,
        [images.read(style).pixels],
        FEW,
        device="cpu",
        masks=[images.read_mask(mask)],
        steering=steering,
    )
    *_, last = again.steps()
    repeated, painted = images.read(again.encode(last)).pixels, images.read(picture).pixels
    assert (repeated - painted).abs().mean() < 1 / 255


async def test_the_real_engine_refuses_what_is_no_picture(tmp_path: Path, pictures: tuple[bytes, bytes]) -> None:
    content, _ = pictures
    async with real_studio(tmp_path) as studio:
        inputs = await studio.add_input("lab", content), await studio.add_input("lab", b"<svg onload='alert(1)'/>")
        with pytest.raises(ImageError):
            await studio.submit("lab", inputs[0], [inputs[1]], FEW)
        with pytest.raises(MemoryLimitError, match="level"):
            await studio.submit("lab", inputs[0], [inputs[0]], FEW.changed({"levels": 6, "max_memory": 1.0}))


def test_the_real_engine_knows_when_memory_ran_out() -> None:
    import torch

    backend = TorchBackend(StudioSettings())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert backend.out_of_memory(caught.value)
    assert backend.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    assert backend.out_of_memory(MemoryError())
    assert not backend.out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not backend.out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("guided", ["mask", "protect", ""])
def test_memory_is_foretold_with_regions_and_without(
    tmp_path: Path, pictures: tuple[bytes, bytes], guided: str
) -> None:
    from core import images
    from core.transfer import Transfer

    run = run_of(tmp_path)
    for path, picture in zip((run.content, *run.styles), pictures, strict=True):
        path.write_bytes(picture)
    region = run.content.with_name("region")
    region.write_bytes(pictures[1])
    if guided:
        run = dataclasses.replace(
            run,
            masks=(region,) if guided == "mask" else (None,),
            protect=region if guided == "protect" else None,
        )
    mask = images.read_mask(pictures[1])
    begun = Transfer(
        images.read(pictures[0]).pixels,
        [images.read(pictures[1]).pixels],
        run.settings,
        device="cpu",
        masks=[mask if guided == "mask" else None],
        protect=mask if guided == "protect" else None,
    )
    assert TorchBackend(StudioSettings()).estimate(run, "cpu").memory_bytes == begun.plan.memory_bytes


def test_devices_give_slots() -> None:
    (slot,) = TorchBackend(StudioSettings(devices=("cpu",))).slots()
    assert (slot.name, slot.device) == ("cpu", "cpu")
    assert slot.kind
    twice = TorchBackend(StudioSettings(devices=("cpu", "cpu"), slots_per_device=2)).slots()
    assert [(slot.name, slot.device) for slot in twice] == [("cpu.0", "cpu"), ("cpu.1", "cpu")]
    with pytest.raises(DeviceError):
        TorchBackend(StudioSettings(devices=("abacus",))).slots()


def test_a_studio_without_an_engine_loads_no_torch() -> None:
    code = "import sys, core.studio, core.studio.executors.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0


# ── New weights, and films ───────────────────────────────────────────────────────────────────────────────────────────

WEIGHTS = {"loss": {"content_weight": 0.5}}


def wish(number: int = 0, **when: int) -> Wish:
    return Wish(number=number, time=1.0, changes=WEIGHTS, text="content 5 → 7", **when)


def results(updates: list[Update]) -> list[bytes]:
    return [update.data for update in updates if isinstance(update, Output)]


async def test_a_run_takes_new_weights_between_two_steps_and_says_when(tmp_path: Path) -> None:
    run = run_of(tmp_path)

    def steer(run: Run, iteration: int) -> None:
        if iteration == 20:
            executor.steer("job", 1, wish())
            executor.steer("job", 2, wish())  # of another attempt, and of another job: nobody's
            executor.steer("other", 1, wish())

    executor = executor_of(tmp_path, Rehearsal(hook=steer))
    updates = await updates_of(executor, run)
    assert [update for update in updates if isinstance(update, Steered)] == [Steered(0, 20, 21)]
    assert results(updates) == [rehearsed(b"content", b"style", 60, {20: WEIGHTS})]


async def test_what_was_taken_up_before_is_taken_up_at_the_same_moment_again(tmp_path: Path) -> None:
    run = dataclasses.replace(run_of(tmp_path), steering=(wish(iteration=20, evaluation=21), wish(1)))
    updates = await updates_of(executor_of(tmp_path, Rehearsal()), run)
    assert [update for update in updates if isinstance(update, Steered)] == [Steered(1, 1, 2)]
    assert results(updates) == [rehearsed(b"content", b"style", 60, {20: WEIGHTS, 1: WEIGHTS})]


async def test_new_weights_outlive_a_try_that_ran_out_of_memory(tmp_path: Path) -> None:
    tries = 0

    def run_out(run: Run, iteration: int) -> None:
        nonlocal tries
        if iteration == 20:
            tries += 1
            if tries == 1:
                executor.steer("job", 1, wish())
        if iteration == 30 and tries == 1:
            raise MemoryError

    settings = QUICK.model_copy(update={"checkpoint_seconds": 100.0})
    executor = executor_of(tmp_path, Rehearsal(hook=run_out), settings)
    updates = await updates_of(executor, run_of(tmp_path))
    assert tries == 2
    assert results(updates) == [rehearsed(b"content", b"style", 60, {20: WEIGHTS})]


async def test_a_film_is_made_where_one_is_wanted(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    (without,) = [
        update for update in await updates_of(executor_of(tmp_path, Rehearsal()), run) if isinstance(update, Output)
    ]
    assert without.film is None
    filmed = dataclasses.replace(run, film=True, frames=tmp_path / "frames")
    updates = await updates_of(executor_of(tmp_path, Rehearsal()), filmed)
    (output,) = [update for update in updates if isinstance(update, Output)]
    assert output.film is not None and output.film_format == "gif"
    assert output.film.split() == [b"%d" % number for number in range(1, 61)]


async def test_a_film_goes_on_after_a_restart(tmp_path: Path) -> None:
    run = dataclasses.replace(run_of(tmp_path), film=True, frames=tmp_path / "frames")

    def stop(run: Run, iteration: int) -> None:
        if iteration == 30:
            executor.cancel("job", 1, keep=True)

    executor = executor_of(tmp_path, Rehearsal(hook=stop))
    saved = [update for update in await updates_of(executor, run) if isinstance(update, Checkpoint)][-1]
    assert saved.frames is not None and run.checkpoint is not None and run.frames is not None
    run.frames.write_bytes(saved.frames)
    run.checkpoint.write_bytes(saved.data)
    updates = await updates_of(executor_of(tmp_path, Rehearsal()), run)
    (output,) = [update for update in updates if isinstance(update, Output)]
    assert output.film is not None
    assert output.film.split() == [b"%d" % number for number in range(1, 61)]
