"""What the bot says, in the languages of `catalogues/`: one TOML file for each, English completing the others.

A new language is a new file. `tests/test_bot_texts.py` holds every catalogue against the English one.
"""

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.studio.jobs import Failure

DEFAULT = "en"
_DIRECTORY = Path(__file__).resolve().parent / "catalogues"


class Texts:
    """One language.

    Args:
        code: Of the language, such as "ru".
        entries: Texts by dotted key; placeholders as in `str.format`.
        causes: What `core` says of errors, as patterns, and how this language says it.
    """

    def __init__(self, code: str, entries: dict[str, str], causes: list[tuple[re.Pattern[str], str]]) -> None:
        self.code = code
        self._entries = entries
        self._causes = causes

    def say(self, key: str, **values: object) -> str:
        """The text of a key, with its placeholders filled."""
        return self._entries[key].format(**values)

    def name(self, kind: str, key: str, otherwise: str) -> str:
        """The name of a style, a preset …; what has none in this language keeps its own."""
        return self._entries.get(f"{kind}.{key}", otherwise)

    def explain(self, error: UserError | Failure) -> str:
        """What went wrong and what to do about it, as sentences of this language."""
        return " ".join(self.sentence(part) for part in (error.cause, error.remedy) if part)

    def sentence(self, text: str) -> str:
        """Something that `core` says, as a sentence: of this language where it is known there."""
        known = next((found for found in self._translations(text)), None)
        text = known or (self.say("error.foreign", text=text) if self._causes else text)
        text = text[0].upper() + text[1:]
        return text if text.endswith((".", "!", "?")) else f"{text}."

    def _translations(self, text: str) -> Iterator[str]:
        for pattern, template in self._causes:
            if found := pattern.fullmatch(text):
                yield template.format(*found.groups())

    def duration(self, seconds: float) -> str:
        """About how long, in one unit."""
        if seconds < 55:
            return self.say("time.seconds", n=max(5, round(seconds / 5) * 5))
        if seconds < 55 * 60:
            return self.say("time.minutes", n=round(seconds / 60) or 1)
        return self.say("time.hours", n=f"{seconds / 3600:.1f}".removesuffix(".0"))

    def commands(self, kind: str = "commands") -> dict[str, str]:
        """What each command of the menu does."""
        prefix = f"{kind}."
        return {key.removeprefix(prefix): text for key, text in self._entries.items() if key.startswith(prefix)}


@cache
def languages() -> dict[str, Texts]:
    """All languages by their codes."""
    found = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(_DIRECTORY.glob("*.toml"))}
    english = _flat(found[DEFAULT])
    return {code: Texts(code, english | _flat(data), _causes(data)) for code, data in found.items()}


def texts(code: str | None) -> Texts:
    """The language that a code asks for, such as "ru" or "pt-br"; English where there is none like it."""
    known = languages()
    return known.get((code or DEFAULT).partition("-")[0].lower(), known[DEFAULT])


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            flat[prefix + key] = value.strip()
    return flat


def _causes(data: dict[str, Any]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(cause["pattern"]), cause["text"]) for cause in data.get("causes", [])]
