"""What people press."""

import time
from typing import Any, Literal

from ui.bot import keyboards
from ui.bot.choices import COLOURS, DIALS, MARKS, presets, side_of
from ui.bot.delivery import Desk, Errands, reply_to
from ui.bot.promises import Promises, Wanted
from ui.bot.records import ChatMemory, Draft, Reply, Shelf, Source, Task, name_of
from ui.bot.scenes import Handler, Replies, Scene, scene_of
from ui.bot.texts import languages


class Buttons:
    """The buttons under the bot's messages.

    Args:
        desk: What errands work with.
        errands: The paintings.
        promises: Makes more of them.
        drafts: What waits for a choice.
        chats: What chats have set.
    """

    def __init__(
        self, desk: Desk, errands: Errands, promises: Promises, drafts: Shelf[Draft], chats: Shelf[ChatMemory]
    ) -> None:
        self._desk = desk
        self._errands = errands
        self._promises = promises
        self._drafts = drafts
        self._chats = chats

    def presses(self) -> dict[str, Handler]:
        """What to do about a press, by the first word of the button's data."""
        return {
            "style": self._style,
            "album": self._album,
            "cancel": self._cancel,
            "retry": self._retry,
            "more": self._more,
            "file": self._file,
            "set": self._setting,
        }

    # What waits for a choice

    async def _style(self, scene: Scene) -> Replies:
        draft_id, key = scene.args
        draft = self._drafts.get(draft_id)
        if draft is None:
            scene.answer(self._desk.courier, "press.old", alert=True)
            return []
        if not self._may_press(scene, draft.user):
            return []
        if key == keyboards.NOTHING:
            return await self._put_aside(scene, draft)
        style = self._desk.gallery.find(key)
        if style is None:
            scene.answer(self._desk.courier, "press.style_gone", alert=True)
            return []
        source = Source(kind="gallery", name=key)
        if draft.content is None:
            scene.answer(self._desk.courier)
            chosen = {"style": source, "open": True, "created": time.time()}
            await self._drafts.put(draft.id, draft.model_copy(update=chosen))
            return scene.reply("style.chosen", style=scene.texts.name("styles", key, style.title))
        task_id = name_of("style", draft.id, key)
        scene.answer(self._desk.courier, "press.already" if self._desk.tasks.get(task_id) else "")
        await self._drafts.put(draft.id, draft.model_copy(update={"open": False}))
        return await self._promises.make(draft, scene.texts, [Wanted(task_id, draft.content, source)])

    async def _put_aside(self, scene: Scene, draft: Draft) -> Replies:
        scene.answer(self._desk.courier)
        await self._drafts.remove(draft.id)
        return [Reply(place=scene.place, kind="strip"), *scene.reply("cancel.pictures")]

    async def _album(self, scene: Scene) -> Replies:
        draft_id, which = scene.args
        draft = self._drafts.get(draft_id)
        if draft is None or draft.content is None:
            scene.answer(self._desk.courier, "press.old", alert=True)
            return []
        if not self._may_press(scene, draft.user):
            return []
        if which == keyboards.NOTHING:
            return await self._put_aside(scene, draft)
        scene.answer(self._desk.courier)
        replies = await self._promises.make(draft, scene.texts, _paintings(draft, draft.content, which))
        return [Reply(place=scene.place, kind="strip"), *replies]

    # Paintings

    async def _cancel(self, scene: Scene) -> Replies:
        task = self._pressed_task(scene)
        if task is not None:
            scene.answer(self._desk.courier, "press.too_late" if task.outcome else "")
            if not task.outcome:
                await self._errands.cancel(task)
        return []

    async def _retry(self, scene: Scene) -> Replies:
        task = self._pressed_task(scene)
        if task is None:
            return []
        scene.answer(self._desk.courier)
        if self._desk.access.room(scene.user) < 1:
            return scene.reply("access.pending", n=self._desk.settings.pending_per_user)
        await self._errands.retry(task)
        return []

    async def _more(self, scene: Scene) -> Replies:
        """Again, stronger, weaker, larger, swapped, filmed: another painting from the same pictures."""
        task, verb, query = self._pressed_task(scene), scene.args[-1], scene.update.callback_query
        if task is None or query is None:
            return []
        same = (child for child in self._desk.tasks if (child.parent, child.verb) == (task.id, verb))
        if any(not child.outcome for child in same):  # pressed twice
            scene.answer(self._desk.courier, "press.already")
            return []
        varied = self._varied(task, verb, name_of("more", query.id))
        if varied is None:
            scene.answer(self._desk.courier, "press.limit", alert=True, side=side_of(task.choices.level))
            return []
        scene.answer(self._desk.courier)
        place = reply_to(task.place, scene.place.message or task.place.message or 0)
        varied = varied.model_copy(update={"place": place, "language": scene.texts.code})
        return await self._promises.accept([varied], scene.texts, place)

    def _varied(self, task: Task, verb: str, task_id: str) -> Task | None:
        """The task that a button asks for; none where this person may not have it."""
        choices, content, style, further = task.choices, task.content, task.style, task.further
        match verb:
            case "again":
                choices = choices.model_copy(update={"seed": int(task_id[:8], 16)})
            case "stronger" | "weaker":
                mark = choices.style + (1 if verb == "stronger" else -1)
                if mark not in MARKS:
                    return None
                choices = choices.model_copy(update={"style": mark})
            case "film":
                choices = choices.model_copy(update={"film": True})
            case "larger":
                if choices.level >= self._desk.access.highest_level(task.user):
                    return None
                choices = choices.model_copy(update={"level": choices.level + 1})
            case "swap":
                content, style, further = style, content, ()
        return Task(
            id=task_id,
            place=task.place,
            user=task.user,
            language=task.language,
            content=content,
            style=style,
            further=further,
            choices=choices,
            parent=task.id,
            verb=verb,
        )

    async def _file(self, scene: Scene) -> Replies:
        task = self._pressed_task(scene)
        if task is None:
            return []
        scene.answer(self._desk.courier, "" if task.file else "press.old")
        return [Reply(place=scene.place, kind="file", file=task.file)] if task.file else []

    # Settings

    async def _setting(self, scene: Scene) -> Replies:
        owner, field, value = scene.args
        if not self._may_press(scene, int(owner)):
            return []
        scene.answer(self._desk.courier)
        key = str(scene.place.chat)
        memory = self._chats.get(key) or ChatMemory()
        changed = self._changed(memory, field, value, scene.user)
        await self._chats.put(key, changed)
        changed_scene = scene_of(scene.update, self._chats) or scene  # perhaps in another language
        return [self.settings(changed_scene, "edit")]

    def _changed(self, memory: ChatMemory, field: str, value: str, user: int) -> ChatMemory:
        """The settings with one changed, where the value is one that may be chosen."""
        known: dict[str, dict[str, Any]] = {
            "level": {str(level): level for level in range(self._desk.access.highest_level(user) + 1)},
            "preset": {preset.name: preset.name for preset in presets()},
            "colours": {name: name for name in COLOURS},
            "film": {"no": False, "yes": True},
            **{dial: {str(mark): mark for mark in MARKS} for dial in DIALS},
        }
        if field == "language":
            return memory.model_copy(update={"language": value if value in languages() else None})
        if value not in known.get(field, {}):
            return memory
        chosen = memory.choices.model_copy(update={field: known[field][value]})
        return memory.model_copy(update={"choices": chosen})

    def settings(self, scene: Scene, kind: Literal["text", "edit"]) -> Reply:
        """The panel of a chat's settings: a new message, or another face of the one that was pressed."""
        place = scene.place
        memory = self._chats.get(str(place.chat)) or ChatMemory()
        highest = self._desk.access.highest_level(scene.user)
        keyboard = keyboards.settings(scene.texts, memory, scene.user, highest)
        preset = next((known for known in presets() if known.name == memory.choices.preset), presets()[0])
        described = scene.texts.name("described", preset.name, preset.description)
        text = scene.texts.say(
            "settings", preset=scene.texts.name("presets", preset.name, preset.title), described=described
        )
        return Reply(place=place, kind=kind, text=text, keyboard=keyboard)

    # Who may press

    def _pressed_task(self, scene: Scene) -> Task | None:
        """The task whose button was pressed, if it is there and the presser's."""
        task = self._desk.tasks.get(scene.args[0])
        if task is None:
            scene.answer(self._desk.courier, "press.old", alert=True)
            return None
        return task if self._may_press(scene, task.user) else None

    def _may_press(self, scene: Scene, owner: int) -> bool:
        """Buttons obey the person they were made for."""
        if scene.user == owner:
            return True
        scene.answer(self._desk.courier, "press.not_yours", alert=True)
        return False


def _paintings(draft: Draft, content: Source, which: str) -> list[Wanted]:
    """What is wanted of an album: all styles one after the other, all in one painting, or only the first."""
    if which == "mix":
        first, *further = draft.styles
        return [Wanted(name_of("album", draft.id, "mix"), content, first, tuple(further))]
    styles = draft.styles if which == "all" else draft.styles[:1]
    return [Wanted(name_of("album", draft.id, number), content, style) for number, style in enumerate(styles)]
