"""Promises: paintings that are accepted, as far as their person may have them."""

from collections.abc import Sequence

from ui.bot.delivery import Desk, Errands
from ui.bot.records import ChatMemory, Choices, Draft, Place, Reply, Shelf, Source, Task
from ui.bot.scenes import Replies
from ui.bot.texts import Texts


class Promises:
    """Makes tasks of what people want.

    Args:
        desk: What errands work with.
        errands: The paintings.
        chats: What chats have set.
    """

    def __init__(self, desk: Desk, errands: Errands, chats: Shelf[ChatMemory]) -> None:
        self._desk = desk
        self._errands = errands
        self._chats = chats

    async def make(self, draft: Draft, language: Texts, wanted: Sequence[tuple[str, Source, Source]]) -> Replies:
        """Accepts paintings (id, content, style) as far as there is room; the status message is the answer.

        Args:
            draft: Who asks, and where to answer.
            language: In which.
            wanted: In their order.
        """
        choices = self.choices(draft.place.chat, draft.user)
        fresh = [
            Task(
                id=task_id,
                place=draft.place,
                user=draft.user,
                language=language.code,
                content=content,
                style=style,
                choices=choices,
            )
            for task_id, content, style in wanted
            if self._desk.tasks.get(task_id) is None
        ]
        return await self.accept(fresh, language, draft.place)

    async def accept(self, fresh: Sequence[Task], language: Texts, place: Place) -> Replies:
        """Accepts tasks of one person as far as there is room, and says so where there isn't."""
        if not fresh:
            return []
        user, settings, access = fresh[0].user, self._desk.settings, self._desk.access
        room, today = access.room(user), access.left_today(user)
        for task in fresh[: max(0, min(room, today))]:
            await self._errands.accept(task)
        if len(fresh) > today:
            return [Reply(place=place, text=language.say("access.today", n=settings.jobs_per_day))]
        if len(fresh) > room:
            return [Reply(place=place, text=language.say("access.pending", n=settings.pending_per_user))]
        return []

    def choices(self, chat: int, user: int) -> Choices:
        """What is set in a chat, as far as this person may have it."""
        choices = (self._chats.get(str(chat)) or ChatMemory()).choices
        level = min(choices.level, self._desk.access.highest_level(user))
        return choices.model_copy(update={"level": level})
