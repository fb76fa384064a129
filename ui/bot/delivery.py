"""Errands: one for each task, from the accepted request to the delivered file.

    accepted ─ fetch the pictures ─ submit ─ follow the job ─ photo ─ file ─ told
                  └──────────── status message, edited all the while ──────────┘

Every step is written down after it is taken, and each is such that taking it again does no harm (a job is submitted
under the task's own key), so that a process that is killed anywhere goes on from there.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from telegram.error import BadRequest, Forbidden, InvalidToken, TelegramError

from core.errors import UserError
from core.studio import Job, JobState, Studio
from core.studio.jobs import JobStateError, NoSuchJobError
from ui.bot import keyboards
from ui.bot.access import Access
from ui.bot.choices import presets, settings_of
from ui.bot.courier import Courier, UnreachableError
from ui.bot.gallery import Gallery
from ui.bot.pictures import Workshop, as_document, as_photo, stripped
from ui.bot.records import Keyboard, Place, Shelf, Source, Task
from ui.bot.settings import BotSettings
from ui.bot.texts import Texts, texts

log = logging.getLogger(__name__)

_DELETED = ("message to edit not found", "message can't be edited", "message_id_invalid")
_BAR = 12
_PLAYED = (".mp4", ".gif")
"""Kinds of films that Telegram plays in a chat."""
_AFTER_STUMBLING = 10.0


@dataclass(frozen=True)
class Desk:
    """What every errand works with."""

    studio: Studio
    settings: BotSettings
    courier: Courier
    gallery: Gallery
    workshop: Workshop
    access: Access
    tasks: Shelf[Task]


@dataclass(frozen=True)
class View:
    """What a status message says."""

    text: str
    keyboard: Keyboard = ()


class Errands:
    """All errands of the process.

    Args:
        desk: What they work with.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._running: dict[str, tuple[Errand, asyncio.Task[None]]] = {}

    def resume(self) -> None:
        """Goes on with what a former process left."""
        for task in self._desk.tasks:
            if not task.told and not task.held:
                self._start(task.id)

    async def accept(self, task: Task) -> None:
        """Promises a painting; returns when that is safe. The second promise of the same task is the first."""
        if self._desk.tasks.get(task.id) is None:
            await self._desk.access.count(task.user)
            await self._desk.tasks.put(task.id, task)
            self._start(task.id)

    async def cancel(self, task: Task) -> None:
        """Says that nobody waits for a painting any more."""
        await self._change(task.id, cancelled=True)
        if task.job:
            await withdraw(self._desk.studio, task.job)

    async def retry(self, task: Task) -> None:
        """Begins again with a painting that failed or was cancelled."""
        if task.outcome in ("failed", "cancelled"):
            await self._stop(task.id)
            afresh = {"outcome": "", "error": "", "ended": None, "cancelled": False, "told": False, "again": True}
            await self._change(task.id, **afresh)
            self._start(task.id)

    def release(self, chat: int) -> None:
        """Goes on with what was held back because a chat was out of reach."""
        for task in self._desk.tasks:
            if task.held and task.place.chat == chat:
                self._start(task.id)

    async def forget(self, user: int) -> list[Place]:
        """Stops all errands of a person and forgets them; the status messages that were still to change."""
        stale = []
        for task in self._desk.tasks:
            if task.user == user:
                await self._stop(task.id)
                await self._desk.tasks.remove(task.id)
                if task.status and not task.told:
                    stale.append(reply_to(task.place, task.status))
        return stale

    async def forget_old(self) -> None:
        """Forgets tasks whose pictures have been deleted."""
        before = time.time() - self._desk.settings.keep_seconds
        for task in self._desk.tasks:
            ended = task.ended or (task.created if task.held else None)
            if ended is not None and ended < before:
                await self._stop(task.id)
                await self._desk.tasks.remove(task.id)

    async def close(self) -> None:
        """Stops all errands where they are; they go on at the next start."""
        await asyncio.gather(*(self._stop(task_id) for task_id in list(self._running)))

    def job_of(self, task: Task) -> Job | None:
        """The task's job as its errand last saw it."""
        running = self._running.get(task.id)
        return running[0].job if running else None

    def summary(self, task: Task, language: Texts) -> str:
        """A line about an open task."""
        return progress_text(language, self.job_of(task), self._desk.studio.queue_paused).partition("\n")[0]

    def _start(self, task_id: str) -> None:
        if task_id not in self._running:
            errand = Errand(self._desk, task_id)
            work = asyncio.create_task(self._see_through(errand), name=f"errand {task_id}")
            self._running[task_id] = (errand, work)
            work.add_done_callback(lambda _: self._running.pop(task_id))

    async def _see_through(self, errand: "Errand") -> None:
        """A full disk, say, only makes it wait: it is written down how far it is."""
        while True:
            try:
                return await errand.run()
            except Exception:
                log.exception("errand %s stumbled, going on in a while", errand.task_id)
                await asyncio.sleep(_AFTER_STUMBLING)

    async def _stop(self, task_id: str) -> None:
        if running := self._running.get(task_id):
            running[1].cancel()
            await asyncio.gather(running[1], return_exceptions=True)

    async def _change(self, task_id: str, **changes: Any) -> None:
        task = self._desk.tasks.get(task_id)
        if task is not None:
            await self._desk.tasks.put(task_id, task.model_copy(update=changes))


class Errand:
    """One task's way through the studio.

    Args:
        desk: What it works with.
        task_id: The task.
    """

    def __init__(self, desk: Desk, task_id: str) -> None:
        self._desk = desk
        self.task_id = task_id
        self._ended = asyncio.Event()
        self._previewed = 0.0
        self._preview: int | None = None
        self._takes_pictures = True
        self.job: Job | None = None

    @property
    def task(self) -> Task:
        """The task as it is now."""
        task = self._desk.tasks.get(self.task_id)
        assert task is not None, "an errand ends before its task is forgotten"
        return task

    @property
    def _texts(self) -> Texts:
        return texts(self.task.language)

    async def _note(self, **changes: Any) -> None:
        await self._desk.tasks.put(self.task_id, self.task.model_copy(update=changes))

    async def run(self) -> None:
        """From where the task stands to its end, with the status message beside it."""
        if self.task.held:
            await self._note(held=False)
        if self.task.job:  # so that the first glance after a restart shows no less than the last one before
            with contextlib.suppress(NoSuchJobError):
                self.job = await self._desk.studio.job(self.task.job)
        status = asyncio.create_task(self._keep_status())
        try:
            if not self.task.outcome:
                await self._carry_out()
            self._ended.set()
            await status
        except UnreachableError as error:
            log.info("task %s waits, its chat is out of reach: %s", self.task_id, error)
            await self._note(held=True)
        finally:
            status.cancel()
            await asyncio.gather(status, return_exceptions=True)

    async def _carry_out(self) -> None:
        """To an outcome, whatever happens."""
        try:
            await self._finish(await self._work())
        except NoSuchJobError:
            await self._end("gone")
        except UserError as error:
            log.info("task %s (job %s) can't be done: %s", self.task_id, self.task.job, error)
            await self._end("failed", self._texts.explain(error))
        except UnreachableError:
            raise
        except Exception:
            log.exception("task %s (job %s) failed", self.task_id, self.task.job)
            await self._end("failed", self._texts.say("error.internal"))

    async def _end(self, outcome: str, error: str = "") -> None:
        await self._note(outcome=outcome, error=error, ended=time.time())

    async def _finish(self, job: Job | None) -> None:
        if job is None or job.state is JobState.CANCELLED:
            await self._end("cancelled")
        elif job.state is JobState.FAILED:
            await self._end("failed", self._texts.explain(job.error) if job.error else "")
        else:
            await self._deliver(job)
            await self._end("done")

    # The work

    async def _work(self) -> Job | None:
        """Sees the job through; none where it was cancelled before there was one."""
        if self.task.again:
            await self._begin_again()
        if self.task.job is None:
            job = await self._submit()
            if job is None:
                return None
            await self._note(job=job.id)
            log.info("task %s of %s is job %s", self.task_id, self.task.owner, job.id)
        assert self.task.job is not None
        if self.task.cancelled:
            await withdraw(self._desk.studio, self.task.job)
        return await self._follow(self.task.job)

    async def _begin_again(self) -> None:
        """Has the studio retry the job; one that was deleted meanwhile is submitted anew."""
        if self.task.job:
            try:
                await self._desk.studio.retry(self.task.job)
            except NoSuchJobError:
                await self._note(job=None)
            except JobStateError as error:  # it goes on already: we crashed before that was noted
                log.info("task %s isn't retried: %s", self.task_id, error)
        await self._note(again=False)

    async def _submit(self) -> Job | None:
        task, studio = self.task, self._desk.studio
        weights = [style.weight for style in task.styles]
        settings = settings_of(task.choices, self._desk.settings.changes, weights)
        content = await self._input(task.content)
        await self._note(content=content)
        styles = []
        for style in task.styles:
            styles.append(await self._input(style))
            known = (*styles, *self.task.styles[len(styles) :])
            await self._note(style=known[0], further=known[1:])
        if self.task.cancelled:
            return None
        return await studio.submit(
            task.owner,
            content.input or "",
            [style.input or "" for style in styles],
            settings,
            film=task.choices.film,
            key=task.id,
            tags={"chat": str(task.place.chat), "task": task.id},
            keep_seconds=self._desk.settings.keep_seconds,
        )

    async def _input(self, source: Source) -> Source:
        """A picture with the studio's id of it; it is fetched if the studio doesn't have it (any more)."""
        kept = await self._known(source)
        if kept is None:
            kept = await self._desk.studio.add_input(self.task.owner, await self._fetch(source))
        return source.model_copy(update={"input": kept})

    async def _known(self, source: Source) -> str | None:
        """Where this task, or another of the same person, has had the picture fetched before."""
        same = (
            other.input
            for task in self._desk.tasks
            if task.user == self.task.user
            for other in (task.content, *task.styles)
            if other.name == source.name and other.input
        )
        for kept in dict.fromkeys(same):
            with contextlib.suppress(NoSuchJobError):
                await self._desk.studio.input_path(kept)
                return kept
        return None

    async def _fetch(self, source: Source) -> bytes:
        if source.kind == "gallery":
            return await self._desk.gallery.picture(source.name)
        return await self._desk.workshop.do(stripped, await self._download(source.name))

    async def _download(self, file_id: str) -> bytes:
        limit = self._desk.settings.limits.download

        async def request() -> bytes:
            file = await self._desk.courier.bot.get_file(file_id)
            if (file.file_size or 0) > limit:
                raise BadRequest("file is too big")
            return bytes(await file.download_as_bytearray())

        try:
            return await self._desk.courier.patiently(request)
        except (BadRequest, Forbidden, InvalidToken) as error:
            log.info("task %s: a picture can't be fetched: %s", self.task_id, error)
            if "too big" in str(error).lower():
                cause = "this file is larger than Telegram lets bots fetch"
                raise UserError(cause, "Send it as a photo, or make it smaller") from None
            raise UserError("Telegram doesn't have this picture any more", "Send it again") from None

    async def _follow(self, job_id: str) -> Job:
        """Watches a job until it ends."""
        with self._desk.studio.subscribe(job_id=job_id) as events:
            job = self.job = await self._desk.studio.job(job_id)
            while job.state.pending:
                event = await events.next()
                if event is None:
                    raise asyncio.CancelledError  # the studio closes
                if event.kind == "removed":
                    raise NoSuchJobError("this job was deleted")
                job = self.job = event.job or await self._desk.studio.job(job_id)
        return job

    # The result

    async def _deliver(self, job: Job) -> None:
        """The photo, the file, the film; each once."""
        if not self.task.only_film:
            await self._deliver_picture(job)
        if job.result and job.result.film and self.task.film is None:
            self._desk.courier.busy(self.task.place, "upload_video")
            path = await self._desk.studio.film_path(job.id)
            film = await asyncio.to_thread(path.read_bytes)
            await self._desk.courier.unit(self._send_film(job, film, path.suffix))

    async def _deliver_picture(self, job: Job) -> None:
        data = await self._desk.studio.result_bytes(job.id)
        courier, limits = self._desk.courier, self._desk.settings.limits
        if self.task.photo is None:
            courier.busy(self.task.place, "upload_photo")
            photo = await self._desk.workshop.do(as_photo, data, limits)
            await courier.unit(self._send_photo(job, photo))
        if self.task.document is None:
            courier.busy(self.task.place, "upload_document")
            document, suffix = await self._desk.workshop.do(as_document, data, limits)
            await courier.unit(self._send_document(job, document, suffix))

    async def _send_photo(self, job: Job, photo: bytes | None) -> None:
        sent = 0
        if photo is not None:
            try:
                caption, buttons = self._caption(job), self._variants()
                sent = (await self._desk.courier.photo(self.task.place, photo, caption, buttons)).message_id
            except BadRequest as error:
                log.warning("task %s (job %s): no photo, only the file: %s", self.task_id, job.id, error)
        await self._note(photo=sent)

    async def _send_document(self, job: Job, document: bytes, suffix: str) -> None:
        task = self.task
        name = f"pyramid-style-{task.short_id}.{suffix}"
        alone = not task.photo
        caption = self._caption(job) if alone else self._texts.say(f"result.{suffix}")
        keyboard = self._variants() if alone else ()
        try:
            message = await self._desk.courier.document(task.place, document, name, caption, keyboard)
            file = message.document.file_id if message.document else None
            await self._note(document=message.message_id, file=file)
        except BadRequest as error:
            log.error("task %s (job %s): Telegram refuses the file: %s", self.task_id, job.id, error)
            await self._note(document=0)

    async def _send_film(self, job: Job, film: bytes, suffix: str) -> None:
        """As an animation where Telegram plays its kind, else as a file."""
        task, courier = self.task, self._desk.courier
        name, caption = f"pyramid-style-{task.short_id}{suffix}", self._texts.say("result.film")
        try:
            if suffix in _PLAYED:
                message = await courier.animation(task.place, film, name, caption)
            else:
                message = await courier.document(task.place, film, name, caption)
            await self._note(film=message.message_id)
        except BadRequest as error:
            log.error("task %s (job %s): Telegram refuses the film: %s", self.task_id, job.id, error)
            await self._note(film=0)

    def _caption(self, job: Job) -> str:
        assert job.result is not None
        language, choices = self._texts, self.task.choices
        return language.say(
            "result.caption",
            preset=_preset_title(language, choices.preset),
            width=job.result.width,
            height=job.result.height,
            time=language.duration(job.result.seconds),
        )

    def _variants(self) -> Keyboard:
        return keyboards.variants(self._texts, self.task, self._desk.access.highest_level(self.task.user))

    # The status message

    async def _keep_status(self) -> None:
        """Shows how the task stands, at a pace that suits people and Telegram, until it is told how it ended."""
        shown: View | None = None
        pause = self._pace(self._desk.settings.rhythm.edit)
        with contextlib.suppress(UnreachableError):
            while True:
                final, view = self._ended.is_set(), self._view()
                preview = None if final else await self._due_preview()
                changed = view != shown or preview is not None
                if not changed or await self._show(view, preview, final):
                    shown = view
                    if final:
                        break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._ended.wait()
            await self._note(told=True)

    def _pace(self, seconds: float) -> float:
        return seconds * (self._desk.settings.rhythm.group_factor if self.task.place.group else 1.0)

    def _view(self) -> View:
        task, language = self.task, self._texts
        match task.outcome:
            case "done":
                sent = task.film if task.only_film else task.document
                lost = "" if sent else "\n" + language.say("error.refused", id=task.short_id)
                return View(language.say("status.done") + lost)
            case "failed":
                text = language.say("status.failed", error=task.error, id=task.short_id)
                return View(text, keyboards.retrying(language, task))
            case "cancelled":
                return View(language.say("status.cancelled"), keyboards.retrying(language, task))
            case "gone":
                return View(language.say("status.gone"))
        if task.cancelled:
            return View(language.say("status.cancelling"))
        text = progress_text(language, self.job, self._desk.studio.queue_paused)
        return View(text, keyboards.cancelling(language, task))

    async def _show(self, view: View, preview: bytes | None, final: bool) -> bool:
        """Whether the status message shows it now, or never will."""
        task = self.task
        if task.status is None:
            await self._desk.courier.unit(self._send_status(view))
            return True
        if task.status == 0:
            return True
        if not final and not self._desk.courier.is_free(task.place.chat):
            return False
        try:
            await self._desk.courier.unit(self._edit_status(view, preview, final))
            return True
        except BadRequest as error:
            return await self._understand(error)
        except Forbidden as error:
            raise UnreachableError(str(error)) from error
        except TelegramError as error:
            log.debug("task %s: a progress report is left out: %s", self.task_id, error)
            return False

    async def _send_status(self, view: View) -> None:
        try:
            message = await self._desk.courier.text(self.task.place, view.text, view.keyboard)
            await self._note(status=message.message_id)
        except BadRequest as error:  # a closed topic, for instance
            log.warning("task %s has no status message: %s", self.task_id, error)
            await self._note(status=0)

    async def _edit_status(self, view: View, preview: bytes | None, final: bool) -> None:
        task = self.task
        await self._desk.courier.edit(
            task.place.chat,
            task.status or 0,
            view.text,
            view.keyboard,
            is_photo=task.status_is_photo,
            preview=preview,
            progress=not final,
        )
        if preview is not None:
            self._previewed, self._preview = time.monotonic(), self.job.preview if self.job else None
            if not task.status_is_photo:
                await self._note(status_is_photo=True)

    async def _due_preview(self) -> bytes | None:
        """The latest preview, if there is a new one and it is time for it."""
        waited = time.monotonic() - self._previewed >= self._pace(self._desk.settings.rhythm.preview)
        if not (self._takes_pictures and waited and self.job) or self.job.preview in (None, self._preview):
            return None
        if self.task.status is None or not self.job.state.pending:
            return None
        with contextlib.suppress(UserError):
            return await self._desk.studio.preview_bytes(self.job.id)
        return None

    async def _understand(self, error: BadRequest) -> bool:
        """What Telegram's complaint about an edit means; whether there is nothing left to do."""
        complaint = str(error).lower()
        if "not modified" in complaint:
            return True
        if any(sign in complaint for sign in _DELETED):  # whoever deleted it doesn't want it back
            await self._note(status=0)
            return True
        if "no text in the message" in complaint:  # it became a photo just before a crash
            await self._note(status_is_photo=True)
            return False
        log.warning("task %s: the status message can't be edited: %s", self.task_id, error)
        insist, self._takes_pictures = self._takes_pictures, False
        return not insist


def progress_text(language: Texts, job: Job | None, queue_paused: bool) -> str:
    """How a job stands, in a line or a few."""
    if job is None:
        return language.say("status.accepted")
    left = language.say("status.left", time=language.duration(job.seconds_left)) if job.seconds_left else ""
    match job.state:
        case JobState.QUEUED:
            text = language.say("status.queued", place=job.position or 1) + left
            return text + ("\n" + language.say("status.queue_paused") if queue_paused else "")
        case JobState.RUNNING:
            share = job.progress.fraction if job.progress else 0.0
            bar = "▰" * round(share * _BAR) + "▱" * (_BAR - round(share * _BAR))
            lines = [language.say("status.running", percent=int(share * 100)) + left, bar]
            return "\n".join(lines + [language.sentence(notice.text) for notice in job.notices])
        case JobState.PAUSED:
            return language.say("status.paused")
        case _:
            return language.say("status.finishing")


def _preset_title(language: Texts, name: str) -> str:
    title = next((preset.title for preset in presets() if preset.name == name), name)
    return language.name("presets", name, title)


async def withdraw(studio: Studio, job_id: str) -> None:
    """Cancels a job, unless it has ended already."""
    with contextlib.suppress(JobStateError, NoSuchJobError):
        job = await studio.job(job_id)
        await studio.cancel(job.id, job.attempt)


def open_tasks(tasks: Shelf[Task], user: int, chat: int) -> Collection[Task]:
    """What a person waits for in a chat."""
    return [task for task in tasks if task.user == user and task.place.chat == chat and not task.outcome]


def reply_to(place: Place, message: int) -> Place:
    """The same chat and topic, in answer to another message."""
    return place.model_copy(update={"message": message})
