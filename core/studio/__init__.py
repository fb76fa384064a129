"""The studio: a durable queue of style transfers, for the lab, the bot and whoever comes.

    async with Studio.open(data) as studio:
        content, style = await studio.add_input("me", photo), await studio.add_input("me", painting)
        job = await studio.submit("me", content, [style], config.load("final"))
        with studio.subscribe(job_id=job.id) as events:
            async for event in events:
                ...

What is told has been committed; what was accepted survives any end of the process. Jobs of all processes that share the
data directory are in one queue: any of them may run a job, and all of them are told of it. Mistakes of users are
`UserError`s (`core.studio.jobs` has those of the studio).
"""

import asyncio
import contextlib
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import platformdirs
from pydantic import ValidationError

from core.config import Settings
from core.errors import SettingsError
from core.steering import steered
from core.studio.files import preview_name
from core.studio.jobs import (
    Estimate,
    Job,
    JobState,
    LossPoint,
    NoSuchJobError,
    PoisonedDeviceError,
    Run,
    StudioSettings,
    Transition,
    new_id,
)
from core.studio.scheduler import Event, Executor, Scheduler, Subscription
from core.studio.store import Store

__all__ = ["Event", "Job", "JobState", "Records", "Studio", "StudioSettings", "Subscription", "default_data_directory"]

SETTINGS_NAME = "studio.toml"

P = ParamSpec("P")
T = TypeVar("T")


def default_data_directory() -> Path:
    """Where data is kept unless told otherwise, by the custom of the operating system."""
    return platformdirs.user_data_path("pyramid-style")


class Records:
    """What a front door has to remember: JSON values by space (`bot.albums`, `bot.settings` …) and key.

    Every method is one transaction, and returns after it is on the disk. A value that stands for something to be done
    is best removed after it was done, and the doing such that twice does no harm (`submit` with a key, for instance).
    """

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._commit = scheduler.commit

    async def put(self, space: str, key: str, value: Any) -> None:
        """Keeps a value in place of what was there."""
        await self._commit(self._store.put_record, space, key, value)

    async def get(self, space: str, key: str) -> Any:
        """The value; none where there is none."""
        return await self._commit(self._store.record, space, key)

    async def all(self, space: str) -> dict[str, Any]:
        """All values of a space, in the order in which their keys first came."""
        return await self._commit(self._store.records, space)

    async def remove(self, space: str, key: str) -> bool:
        """Forgets a value; false where there was none."""
        return await self._commit(self._store.remove_record, space, key)


class Studio:
    """One process's view of the queue. Get one from `Studio.open`; use it on the event loop that opened it.

    Jobs are frozen values: what a method returns is how the job was then, including its place in the queue, its
    progress and the time left.
    """

    def __init__(self, store: Store, scheduler: Scheduler, executor: Executor, settings: StudioSettings) -> None:
        self._store = store
        self._scheduler = scheduler
        self._executor = executor
        self.settings = settings
        self.records = Records(store, scheduler)
        """What the front doors keep."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, data: Path | None = None, settings: StudioSettings | None = None, executor: Executor | None = None
    ) -> AsyncIterator[Self]:
        """Opens the data directory, goes on with what was left there, and saves running jobs at the end.

        Args:
            data: The data directory; none: `default_data_directory()`.
            settings: None: the defaults. What the data directory's `studio.toml` says goes before.
            executor: Where jobs are computed; none: where the settings say. The studio closes it.

        Raises:
            StorageError: The directory can't be used.
            SettingsError: Its `studio.toml` isn't right.
            DeviceError: The settings name a device, or a cluster, that isn't there.
        """
        root = (data or default_data_directory()).absolute()
        settings = await asyncio.to_thread(read_settings, root, settings or StudioSettings())
        async with contextlib.AsyncExitStack() as stack:
            store = await asyncio.to_thread(Store, root)
            stack.callback(store.close)
            if executor is None:
                executor = await asyncio.to_thread(_executor, store.root, settings)
            stack.push_async_callback(executor.close)
            scheduler = Scheduler(store, executor, settings)
            stack.push_async_callback(scheduler.close)
            await scheduler.open()
            yield cls(store, scheduler, executor, settings)

    # Asking for pictures

    async def add_input(self, owner: str, data: bytes) -> str:
        """Keeps a picture, as it is, to make jobs of; returns its id.

        Raises:
            StorageError: It can't be written.
        """
        return await self._commit(self._store.add_input, owner, data)

    async def estimate(
        self,
        settings: Settings,
        content: str,
        styles: Sequence[str],
        start: str | None = None,
        *,
        masks: Sequence[str | None] = (),
        protect: str | None = None,
    ) -> Estimate:
        """What a job would need: size, memory, and time as measured on earlier ones (without waiting in the queue).

        Args:
            settings: Of the job.
            content: Id of an input.
            styles: Ids of inputs.
            start: Id of the starting picture, where the settings want one.
            masks: Ids of masks, as in `submit`.
            protect: Likewise.

        Raises:
            MemoryLimitError: It fits on no device; the remedy names the largest level that does.
            UserError: A picture is broken, a network is missing …
        """

        async def file(name: str | None) -> Path | None:
            return await self.input_path(name) if name else None

        content_path, *style_paths = [await self.input_path(name) for name in (content, *styles)]
        mask_paths = tuple([await file(mask) for mask in masks])
        run = Run("", 0, settings, content_path, tuple(style_paths), await file(start), mask_paths, await file(protect))
        return await self._scheduler.wants(run)

    async def submit(
        self,
        owner: str,
        content: str,
        styles: Sequence[str],
        settings: Settings,
        *,
        start: str | None = None,
        masks: Sequence[str | None] = (),
        protect: str | None = None,
        film: bool = False,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
        keep_seconds: float | None = None,
        pending: int | None = None,
    ) -> Job:
        """Puts a job into the queue.

        Args:
            owner: Who asks; owners take turns.
            content: Id of an input.
            styles: Ids of inputs, at least one.
            settings: Of the transfer.
            start: Id of the starting picture, where the settings want one.
            masks: Ids of grey pictures over the content: where each style goes, by its position; none, or beyond the
                last: everywhere.
            protect: Id of a grey picture over the content: what is to keep its content.
            film: Whether a film of the optimisation is wanted too.
            key: The owner's own name for the job. Submitting the same key again, after a crash for instance, changes
                nothing and returns the job that is there.
            tags: Anything to find the job by later (`jobs`).
            keep_seconds: How long it is kept after it is finished; none: as the studio's settings say.
            pending: How many pending jobs this owner may have; none: as the studio's settings say.

        Raises:
            QueueFullError: Too many jobs are pending.
            MemoryLimitError: It fits on no device; the remedy names the largest level that does.
            UserError: As in `estimate`.
        """
        estimate = await self.estimate(settings, content, styles, start, masks=masks, protect=protect)
        job = Job(
            id=new_id(),
            owner=owner,
            content=content,
            styles=tuple(styles),
            start=start,
            masks=tuple(masks),
            protect=protect,
            film=film,
            settings=settings,
            key=key,
            tags=dict(tags or {}),
            keep_seconds=keep_seconds,
            width=estimate.width,
            height=estimate.height,
            network=estimate.network,
            created=time.time(),
        )
        return self._seen(await self._commit(self._store.submit, job, **self._caps(pending)))

    # Changing one's mind

    async def cancel(self, job_id: str, attempt: int) -> Job:
        """Ends a pending job; a running one stops within one evaluation.

        Args:
            job_id: Which job.
            attempt: Which attempt of it was meant; a later one goes on.

        Raises:
            JobStateError: The job is at another attempt, or has ended already.
            NoSuchJobError: It was deleted.
        """
        return self._seen(await self._commit(self._store.cancel, job_id, attempt))

    async def pause(self, job_id: str) -> Job:
        """Holds a queued or running job; a running one is saved.

        Raises:
            JobStateError: The job has ended.
            NoSuchJobError: It was deleted.
        """
        return self._seen(await self._commit(self._store.pause, job_id))

    async def resume(self, job_id: str) -> Job:
        """Puts a paused job back to its place in the queue; it goes on from where it was.

        Raises:
            JobStateError: The job has ended.
            NoSuchJobError: It was deleted.
        """
        return self._seen(await self._commit(self._store.resume, job_id))

    async def steer(self, job_id: str, attempt: int, changes: Mapping[str, Any], text: str) -> Job:
        """Gives a pending job other weights; one that runs goes on with them from where it is.

        What was asked for is part of the job: it survives a restart, and a retry repeats it.

        Args:
            job_id: Which job.
            attempt: Which attempt of it was meant.
            changes: As `Settings.changed` takes them: weights and strengths of the loss and of styles.
            text: The same for people, such as `content 5 → 7`.

        Raises:
            SettingsError: A value isn't allowed.
            JobStateError: The job is at another attempt, or has ended.
            NoSuchJobError: It was deleted.
        """
        steered((await self.job(job_id)).steered_settings, changes)
        return self._seen(await self._commit(self._store.steer, job_id, attempt, changes, text))

    async def retry(self, job_id: str, *, pending: int | None = None) -> Job:
        """Begins a failed or cancelled job again, as its next attempt.

        Raises:
            JobStateError: The job is pending or done.
            QueueFullError: Too many jobs are pending.
            NoSuchJobError: It was deleted.
        """
        return self._seen(await self._commit(self._store.retry, job_id, **self._caps(pending)))

    async def reorder(self, job_id: str, place: int) -> Job:
        """Moves a queued job among those of its owner: 1 is the owner's next. Other owners don't notice.

        Raises:
            JobStateError: The job isn't queued.
            NoSuchJobError: It was deleted.
        """
        return self._seen(await self._commit(self._store.reorder, job_id, place))

    async def pause_queue(self) -> None:
        """Starts no further job, in any process; running ones go on. Holds over restarts."""
        await self._commit(self._store.pause_queue, True)

    async def resume_queue(self) -> None:
        """Starts jobs again."""
        await self._commit(self._store.pause_queue, False)

    async def delete(self, job_id: str) -> None:
        """Deletes a job and its result, whatever its state; one that isn't there is no mistake."""
        await self._commit(self._store.delete, job_id)

    async def forget(self, owner: str) -> int:
        """Deletes everything of an owner at once: jobs, results, pictures. Returns how many jobs there were."""
        return await self._commit(self._store.forget, owner)

    # Seeing

    async def job(self, job_id: str) -> Job:
        """A job as it is now.

        Raises:
            NoSuchJobError: There is none of that id (any more).
        """
        return self._seen(await self._commit(self._store.get, job_id))

    async def find(self, owner: str, key: str) -> Job | None:
        """The job that the owner submitted under this key; none where there is none (any more)."""
        job = await self._commit(self._store.find, owner, key)
        return None if job is None else self._seen(job)

    async def jobs(
        self,
        *,
        owner: str | None = None,
        states: Collection[JobState] = (),
        tags: Mapping[str, str] | None = None,
        limit: int | None = None,
        before: float | None = None,
    ) -> list[Job]:
        """Jobs as they are now, the newest first.

        Args:
            owner: Only of this owner.
            states: Only in these states.
            tags: Only those that have all of these tags.
            limit: At most so many.
            before: Only created before this time; for pages.
        """
        found = await self._commit(self._store.jobs, owner=owner, states=states, tags=tags, limit=limit, before=before)
        return [self._seen(job) for job in found]

    def queue(self) -> list[Job]:
        """The queued jobs of all owners, the next one first."""
        return [self._seen(job) for job in self._scheduler.order()]

    @property
    def queue_paused(self) -> bool:
        """Whether the queue is paused."""
        return self._scheduler.queue_paused

    def subscribe(
        self, after: str | None = None, *, owner: str | None = None, job_id: str | None = None
    ) -> Subscription:
        """What happens from now on. Subscribe first and take the snapshot (`jobs`) then, so that nothing is missed.

        Args:
            after: Id of the last event that the subscriber had (`Last-Event-ID`): events since then come first, or one
                of kind `gap` where they are not known any more.
            owner: Only jobs of this owner.
            job_id: Only this job.
        """
        return self._scheduler.subscribe(after, owner, job_id)

    @property
    def last_event_id(self) -> str:
        """Id to give to a snapshot: whatever is told after it comes to who subscribes after this id."""
        return self._scheduler.last_event_id

    async def wait(self, job_id: str) -> Job:
        """Waits until a job is done, failed or cancelled, or the studio closes; the job as it is then.

        Raises:
            NoSuchJobError: It isn't there, or was deleted meanwhile.
        """
        with self.subscribe(job_id=job_id) as events:
            job = await self.job(job_id)
            while job.state.pending:
                event = await events.next()
                if event is None:
                    break
                job = event.job or await self.job(job_id)
            return job

    async def transitions(self, job_id: str) -> list[Transition]:
        """The job's log: every change of state with its time, oldest first."""
        return await self._commit(self._store.transitions, job_id)

    async def losses(self, job_id: str) -> list[LossPoint]:
        """The losses of every level over time, for a chart.

        Raises:
            NoSuchJobError: There is no such job.
        """
        return await self._commit(self._store.losses, job_id)

    async def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state."""
        return await self._commit(self._store.counts)

    async def submitted(self, owner: str, since: float) -> int:
        """How many jobs an owner has submitted since a time (seconds since 1970)."""
        return await self._commit(self._store.submitted, owner, since)

    @property
    def slots(self) -> dict[str, str | None]:
        """The slots of this process by name, and the id of the job that runs there."""
        busy = self._scheduler.busy
        return {slot.name: busy.get(slot.name) for slot in self._executor.slots()}

    # Files

    async def input_path(self, input_id: str) -> Path:
        """The file of an input.

        Raises:
            NoSuchJobError: There is none of that id (any more).
        """
        return await self._commit(self._store.input_path, input_id)

    async def input_bytes(self, input_id: str) -> bytes:
        """An input as it came.

        Raises:
            NoSuchJobError: There is none of that id (any more).
        """
        return await asyncio.to_thread((await self.input_path(input_id)).read_bytes)

    async def result_path(self, job_id: str) -> Path:
        """The file of the finished picture; `job.result` says its format and size.

        Raises:
            NoSuchJobError: The job isn't there, or not done.
        """
        job = await self.job(job_id)
        if job.result is None:
            raise NoSuchJobError(f"this job has no picture yet, it is {job.state}")
        return self._store.files.path("results", job.result.file)

    async def result_bytes(self, job_id: str) -> bytes:
        """The finished picture as an encoded file.

        Raises:
            NoSuchJobError: The job isn't there, or not done.
        """
        return await asyncio.to_thread((await self.result_path(job_id)).read_bytes)

    async def film_path(self, job_id: str) -> Path:
        """The file of the film of a finished job; its suffix is its format.

        Raises:
            NoSuchJobError: The job isn't there, not done, or nobody asked for a film.
        """
        job = await self.job(job_id)
        if job.result is None or job.result.film is None:
            raise NoSuchJobError("this job has no film", "Ask for one together with the picture")
        return self._store.files.path("results", job.result.film)

    async def preview_bytes(self, job_id: str) -> bytes:
        """The latest preview, a JPEG file; `job.preview` is its version.

        Raises:
            NoSuchJobError: There is none.
        """
        return await asyncio.to_thread(self._store.files.read, "previews", preview_name(job_id))

    # The process

    @property
    def fatal(self) -> PoisonedDeviceError | None:
        """Why this process can't compute any more and should exit with a status other than 0; none: all is well."""
        future = self._scheduler.fatal
        return future.result() if future.done() else None

    async def until_fatal(self) -> PoisonedDeviceError:
        """Waits until this process can't compute any more. The queue is safe; a new process goes on with it."""
        return await asyncio.shield(self._scheduler.fatal)

    async def _commit(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._scheduler.commit(change, *args, **kwargs)

    def _seen(self, job: Job) -> Job:
        return self._scheduler.seen(job)

    def _caps(self, pending: int | None) -> dict[str, int]:
        per_owner = self.settings.pending_per_owner if pending is None else pending
        return {"per_owner": per_owner, "in_all": self.settings.pending_in_all}


def read_settings(data: Path, settings: StudioSettings) -> StudioSettings:
    """What the operator decides for all programs that share a data directory, laid over what they ask for.

    Args:
        data: The data directory; its `studio.toml` is read where there is one.
        settings: Those of the program.

    Raises:
        SettingsError: The file can't be read, has a key that nobody knows, or a value that isn't allowed.
    """
    path = data / SETTINGS_NAME
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return settings
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} can't be read: {error}") from None
    try:
        return StudioSettings.model_validate(settings.model_dump() | found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{path} has a key that nobody knows: '{key}'") from None
        raise SettingsError(f"'{key}' in {path}: {first['msg']}") from None


def _executor(root: Path, settings: StudioSettings) -> Executor:
    # Here, because they load torch or Ray, which takes seconds; who brings an executor of their own may not need it.
    if settings.executor == "ray":
        from core.studio.executors.on_ray import RayExecutor  # noqa: PLC0415

        return RayExecutor(root / "locks", settings)
    from core.studio.executors.local import LocalExecutor, TorchBackend  # noqa: PLC0415

    return LocalExecutor(root / "locks", settings, TorchBackend(settings))
