"""Settings for experts: as fields of a form, made from the settings' own schema, and back from text.

What may be set, within which limits, by which default and what it means stands in `core.config` alone.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from core import config
from core.config import Settings
from ui.lab.shown import Model

TITLES = {
    "loss.tv_weight": "Smoothness (total variation)",
    "loss.level_weights": "Weights of the levels",
    "loss.protect_weight": "Weight of what is protected",
    "loss.content_layers": "Content layers",
    "loss.style_layers": "Style layers",
    "pooling": "Pooling",
    "optimizer.name": "Optimiser",
    "optimizer.iterations": "Iterations of the last level",
    "optimizer.coarse_iterations": "Iterations of every level before",
    "optimizer.level_iterations": "Iterations by level",
    "optimizer.tolerance": "Ends early below",
    "noise.gradient_weight": "Noise keeps off edges",
}
"""What the form shows, and what it calls it; all other settings can be set by their names."""


class Field(Model):
    """A setting as a field of a form."""

    key: str
    title: str
    description: str
    kind: str
    """`choice`, `number` or `text`."""
    options: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    value: str
    """What it is now, as text."""


def fields(settings: Settings) -> list[Field]:
    """The fields of the form, with what they are in these settings."""
    schema = Settings.model_json_schema()
    return [_field(key, title, _schema_of(schema, key), settings) for key, title in TITLES.items()]


def values(settings: Settings) -> dict[str, str]:
    """What the fields of the form are in these settings, by their names."""
    return {key: _text(_value_at(settings, key)) for key in TITLES}


def parse(texts: Mapping[str, str]) -> dict[str, Any]:
    """Texts by dotted names, as changes of settings; an empty text changes nothing.

    Raises:
        SettingsError: A name that isn't one.
    """
    given = {key: text.strip() for key, text in texts.items() if text.strip()}
    return config.parse_assignments(f"{key}={_toml(key, text)}" for key, text in given.items())


def _field(key: str, title: str, schema: Mapping[str, Any], settings: Settings) -> Field:
    options = tuple(map(str, schema.get("enum", ())))
    is_number = schema.get("type") in ("number", "integer")
    return Field(
        key=key,
        title=title,
        description=str(schema.get("description", "")).replace("\n", " ").replace("`", ""),
        kind="choice" if options else "number" if is_number else "text",
        options=options,
        minimum=schema.get("minimum", schema.get("exclusiveMinimum")),
        maximum=schema.get("maximum", schema.get("exclusiveMaximum")),
        value=_text(_value_at(settings, key)),
    )


def _schema_of(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The part of the settings' schema that describes one of them."""
    found: Mapping[str, Any] = schema
    for part in key.split("."):
        found = found.get("properties", {}).get(part, {})
        if "$ref" in found:
            found = schema["$defs"][found["$ref"].rpartition("/")[2]]
    return found


def _value_at(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _toml(key: str, text: str) -> str:
    """A text as the assignment of a setting wants it: several words are a list where one is wanted."""
    if not _takes_list(key) or text == "auto":
        return text
    return json.dumps([_number(word) for word in _words(text)])


def _words(text: str) -> Iterator[str]:
    return (word for word in re.split(r"[,;\s]+", text) if word)


def _number(word: str) -> Any:
    return config.parse_assignments([f"value={word}"])["value"]


def _takes_list(key: str) -> bool:
    schema = _schema_of(Settings.model_json_schema(), key)
    kinds = [schema, *schema.get("anyOf", ())]
    return any(kind.get("type") == "array" for kind in kinds)
