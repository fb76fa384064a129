"""Buttons under messages, and what their presses mean.

A button's data is `verb:argument:…`, at most 64 bytes: all that a press tells us, also years later.
"""

from collections.abc import Sequence

from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from ui.bot.choices import COLOURS, DIALS, MARKS, MIDDLE, MOST_STYLES, presets, side_of
from ui.bot.gallery import Style
from ui.bot.limits import CALLBACK_DATA
from ui.bot.records import Button, ChatMemory, Draft, Keyboard, Task
from ui.bot.texts import Texts, languages

NOTHING = "-"


def markup(keyboard: Keyboard) -> InlineKeyboardMarkup | None:
    """The keyboard as the library wants it."""
    rows = [[InlineKeyboardButton(button.text, callback_data=button.data) for button in row] for row in keyboard]
    return InlineKeyboardMarkup(rows) if rows else None


def _button(text: str, *words: object) -> Button:
    data = ":".join(map(str, words))
    if len(data.encode()) > CALLBACK_DATA:
        raise ValueError(f"{data} is too long for a button")
    return Button(text=text, data=data)


def _in_rows(buttons: Sequence[Button], columns: int) -> Keyboard:
    return tuple(tuple(buttons[start : start + columns]) for start in range(0, len(buttons), columns))


def styles(texts: Texts, draft: Draft, gallery: Sequence[Style]) -> Keyboard:
    """The gallery: a button for every style on the sheet."""
    names = [texts.name("styles", style.key, style.title) for style in gallery]
    buttons = [
        _button(f"{number} · {name}", "style", draft.id, style.key)
        for number, (name, style) in enumerate(zip(names, gallery, strict=True), 1)
    ]
    return (*_in_rows(buttons, 2), (_button(texts.say("button.no"), "style", draft.id, NOTHING),))


def confirmation(texts: Texts, draft: Draft) -> Keyboard:
    """For an album of three or more."""
    rows = [(_button(texts.say("button.all", n=len(draft.styles)), "album", draft.id, "all"),)]
    if len(draft.styles) <= MOST_STYLES:
        rows.append((_button(texts.say("button.mix"), "album", draft.id, "mix"),))
    rows.append((_button(texts.say("button.first"), "album", draft.id, "first"),))
    return (*rows, (_button(texts.say("button.no"), "album", draft.id, NOTHING),))


def cancelling(texts: Texts, task: Task) -> Keyboard:
    """While a painting is on its way."""
    return ((_button(texts.say("button.cancel"), "cancel", task.id),),)


def retrying(texts: Texts, task: Task) -> Keyboard:
    """After a painting failed or was cancelled."""
    return ((_button(texts.say("button.retry"), "retry", task.id),),)


def variants(texts: Texts, task: Task, highest_level: int) -> Keyboard:
    """Under a finished painting."""
    again, stronger, weaker, swap = (
        _button(texts.say(f"button.{verb}"), "more", task.id, verb) for verb in ("again", "stronger", "weaker", "swap")
    )
    first = [again]
    if task.choices.style < MARKS[-1]:
        first.append(stronger)
    if task.choices.style > MARKS[0]:
        first.append(weaker)
    second = [] if task.further else [swap]
    second.append(_button(texts.say("button.file"), "file", task.id))
    if task.film is None:
        second.append(_button(texts.say("button.film"), "more", task.id, "film"))
    if task.choices.level < highest_level:
        text = texts.say("button.larger", side=side_of(task.choices.level + 1))
        second.insert(0, _button(text, "more", task.id, "larger"))
    return (tuple(first), tuple(second))


def settings(texts: Texts, memory: ChatMemory, user: int, highest_level: int) -> Keyboard:
    """What can be set in a chat; the present choice is marked."""
    chosen = memory.choices

    def choice(text: str, field: str, value: object, present: bool) -> Button:
        return _button(f"• {text}" if present else text, "set", user, field, value)

    level = min(chosen.level, highest_level)
    levels = [choice(f"{side_of(step)} px", "level", step, step == level) for step in range(highest_level + 1)]
    kinds = [
        choice(texts.name("presets", preset.name, preset.title), "preset", preset.name, preset.name == chosen.preset)
        for preset in presets()
    ]

    def dial(name: str) -> tuple[Button, ...]:
        """Less, where it stands (back to the middle), more."""
        mark = getattr(chosen, name)
        less, more = max(MARKS[0], mark - 1), min(MARKS[-1], mark + 1)
        words = texts.say(f"dials.{name}", n=mark)
        return (choice("−", name, less, False), choice(words, name, MIDDLE, False), choice("+", name, more, False))

    colours = [choice(texts.say(f"colours.{name}"), "colours", name, name == chosen.colours) for name in COLOURS]
    films = [choice(texts.say(f"film.{word}"), "film", word, (word == "yes") == chosen.film) for word in ("no", "yes")]
    tongues = [
        choice(known.say("language.name"), "language", code, code == memory.language)
        for code, known in languages().items()
    ]
    tongues.append(choice(texts.say("language.automatic"), "language", NOTHING, memory.language is None))
    return (
        *_in_rows(levels, 4),
        *_in_rows(kinds, 2),
        *(dial(name) for name in DIALS),
        *_in_rows(colours, 2),
        tuple(films),
        *_in_rows(tongues, 3),
    )
