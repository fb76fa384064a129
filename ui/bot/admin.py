"""Commands by which admins see and steer the queue."""

import time

from core.studio import JobState
from ui.bot.delivery import Desk
from ui.bot.records import Reply
from ui.bot.scenes import Handler, Replies, Scene

_DAY = 24 * 3600.0
_SHOWN = 30


class Admin:
    """The admins' commands.

    Args:
        desk: What errands work with.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def commands(self, otherwise: Handler) -> dict[str, Handler]:
        """The commands by name; for everybody else, they are like any unknown one.

        Args:
            otherwise: What is done with unknown commands.
        """
        own = {"queue": self._queue, "pause": self._pause, "resume": self._resume, "stats": self._stats}
        return {name: self._guarded(handler, otherwise) for name, handler in own.items()}

    def _guarded(self, handle: Handler, otherwise: Handler) -> Handler:
        async def handler(scene: Scene) -> Replies:
            return await (handle if self._desk.access.is_admin(scene.user) else otherwise)(scene)

        return handler

    async def _queue(self, scene: Scene) -> Replies:
        studio = self._desk.studio
        jobs = await studio.jobs(states={JobState.RUNNING}) + studio.queue()
        if not jobs:
            return scene.reply("admin.empty")
        lines = [
            f"{job.id[:6]} · {job.owner} · {job.width} × {job.height} · {job.state}"
            + (f" {job.progress.fraction:.0%}" if job.progress else "")
            for job in jobs[:_SHOWN]
        ]
        head = scene.texts.say("admin.paused") + "\n" if studio.queue_paused else ""
        return [Reply(place=scene.place, text=head + "\n".join(lines))]

    async def _pause(self, scene: Scene) -> Replies:
        await self._desk.studio.pause_queue()
        return scene.reply("admin.paused")

    async def _resume(self, scene: Scene) -> Replies:
        await self._desk.studio.resume_queue()
        return scene.reply("admin.resumed")

    async def _stats(self, scene: Scene) -> Replies:
        counts = await self._desk.studio.counts()
        recent = [task for task in self._desk.tasks if task.created > time.time() - _DAY]
        return scene.reply(
            "admin.stats",
            states=", ".join(f"{state} {n}" for state, n in counts.items() if n) or "–",
            tasks=len(recent),
            people=len({task.user for task in recent}),
            waiting=sum(not task.outcome for task in self._desk.tasks),
            slots=", ".join(f"{slot}: {(job or '–')[:6]}" for slot, job in self._desk.studio.slots.items()) or "–",
        )
