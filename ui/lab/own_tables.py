"""Tables that someone asked for: several pictures at once, or one picture under several settings (a sweep).

They are kept in the studio's records as these models.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from core import config, dials
from core.config import Settings
from core.errors import SettingsError
from ui.lab import experts
from ui.lab.shown import Model
from ui.lab.tables import Column, Head, Table

MOST_CELLS = 36
MOST_VALUES = 12
LARGEST_SWEEP_LEVEL = 1

SCALE = "scale"
"""As the setting of an axis: the scale of all styles."""


class Row(Model):
    """A content, under the settings of its column or with changes of its own."""

    key: str
    title: str
    picture: str
    """An input."""
    changes: dict[str, Any] = Field(default_factory=dict)


class StyleColumn(Model):
    """One style or several, with settings."""

    key: str
    title: str
    styles: Annotated[tuple[str, ...], Field(min_length=1)]
    """Inputs; all of them in the same picture."""
    style_title: str
    settings: Settings


class OwnTable(Model):
    """A table as it is kept."""

    title: str
    description: str = ""
    created: float = Field(default_factory=time.time)
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    columns: Annotated[tuple[StyleColumn, ...], Field(min_length=1)]
    sweep: bool = False
    masks: tuple[str | None, ...] = ()
    protect: str | None = None
    asked: bool = False
    """All its jobs have been submitted."""

    @model_validator(mode="before")
    @classmethod
    def _of_former_versions(cls, kept: Any) -> Any:
        """A table was once but contents, styles and settings."""
        if not isinstance(kept, Mapping) or "contents" not in kept:
            return kept
        rows = [{"key": name, "title": title, "picture": name} for name, title in kept["contents"]]
        columns = [
            {"key": name, "title": title, "styles": [name], "style_title": title, "settings": kept["settings"]}
            for name, title in kept["styles"]
        ]
        known = {key: kept[key] for key in ("title", "created", "asked")}
        return {**known, "rows": rows, "columns": columns}

    @property
    def first(self) -> tuple[str, ...]:
        """Content and styles of the first picture."""
        return (self.rows[0].picture, *self.columns[0].styles)

    def table(self, name: str) -> Table:
        """For the board."""
        rows = tuple(Head(row.key, row.title, row.picture) for row in self.rows)
        columns = tuple(
            Column(
                Head(column.key, column.title, column.styles[0]),
                column.settings,
                column.style_title,
                shows_style=not self.sweep,
                further=column.styles[1:],
            )
            for column in self.columns
        )
        return Table(
            name=name,
            title=self.title,
            description=self.description,
            level=self.columns[0].settings.levels,
            rows=rows,
            columns=columns,
            own=True,
            sweep=self.sweep,
            changes={row.key: row.changes for row in self.rows if row.changes},
            masks=self.masks,
            protect=self.protect,
        )


def column(styles: Sequence[tuple[str, str]], settings: Settings) -> StyleColumn:
    """A column of these styles (input and title), all of them in the same picture."""
    title = " + ".join(title for _, title in styles)
    inputs = tuple(name for name, _ in styles)
    return StyleColumn(key="-".join(inputs), title=title, styles=inputs, style_title=title, settings=settings)


def gallery(contents: Sequence[tuple[str, str]], columns: Sequence[StyleColumn]) -> OwnTable:
    """Every content (input and title) in the styles of every column."""
    rows = tuple(Row(key=name, title=title, picture=name) for name, title in contents)
    row_title = rows[0].title if len(rows) == 1 else f"{len(rows)} contents"
    column_title = columns[0].title if len(columns) == 1 else f"{len(columns)} styles"
    return OwnTable(title=f"{row_title} in {column_title}", rows=rows, columns=tuple(columns))


# ── Sweeps ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def axes() -> dict[str, str]:
    """What the form offers to vary, and what it calls it; all other settings can be varied by their names."""
    turned = {dial.name: dial.title for dial in dials.DIALS}
    return turned | {SCALE: "Scale of the style", "colour": "Colours", "seed": "Seed"} | experts.TITLES


def values_of(text: str) -> list[str]:
    """The values of an axis: apart by semicolons where there are any, else by commas."""
    return [value.strip() for value in text.split(";" if ";" in text else ",") if value.strip()]


def variants(settings: Settings, styles: int, setting: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """The title of every value of an axis, and what it changes in the settings.

    Args:
        settings: That are varied.
        styles: How many there are.
        setting: A dial, the scale, or a setting by its dotted name.
        text: The values.

    Raises:
        SettingsError: No values, too many, or one that isn't allowed.
    """
    values = values_of(text)
    if not 1 <= len(values) <= MOST_VALUES:
        raise SettingsError(f"'{setting}' has {len(values)} values", f"Give 1 to {MOST_VALUES}, with commas between")
    title = axes().get(setting, setting)
    return [(f"{title} {value}", _differences(settings, _varied(settings, styles, setting, value))) for value in values]


def _varied(settings: Settings, styles: int, setting: str, value: str) -> Settings:
    if setting in {dial.name for dial in dials.DIALS}:
        return dials.apply(settings, {setting: _number(setting, value)})
    if setting == SCALE:
        scale, weights = _number(setting, value), [settings.style(number).weight for number in range(styles)]
        return settings.changed({"styles": [{"weight": weight, "scale": scale} for weight in weights]})
    if setting == "levels":
        raise SettingsError("the size can't be varied", "Make a picture of the sweep large instead")
    return settings.changed(experts.parse({setting: value}))


def _number(setting: str, text: str) -> float:
    value = config.parse_assignments([f"value={text}"])["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f"'{text}' is not a number", f"Give numbers for '{setting}', with commas between")
    return float(value)


def _differences(before: Settings, after: Settings) -> dict[str, Any]:
    return _nested(before.model_dump(mode="json"), after.model_dump(mode="json"))


def _nested(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _nested(before[key], value) if isinstance(value, Mapping) and isinstance(before[key], Mapping) else value
        for key, value in after.items()
        if value != before[key]
    }


def sweep(
    content: tuple[str, str],
    styles: Sequence[tuple[str, str]],
    settings: Settings,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    columns: Sequence[tuple[str, Mapping[str, Any]]],
    masks: tuple[str | None, ...] = (),
    protect: str | None = None,
) -> OwnTable:
    """One picture under all combinations of some changes.

    Args:
        content: Its input and its title.
        styles: Likewise.
        settings: That are varied.
        rows: Titles and changes.
        columns: Likewise; none: the settings as they are.
        masks: Of the styles.
        protect: Of the content.

    Raises:
        SettingsError: It is too large.
    """
    columns = columns or [("As it is", {})]
    if len(rows) * len(columns) > MOST_CELLS:
        raise SettingsError(f"these would be {len(rows) * len(columns)} pictures", f"A sweep has at most {MOST_CELLS}")
    if settings.levels > LARGEST_SWEEP_LEVEL:
        raise SettingsError("a sweep is made of small pictures", f"Choose level {LARGEST_SWEEP_LEVEL} or below")
    style_title = " + ".join(title for _, title in styles)
    inputs = tuple(name for name, _ in styles)
    return OwnTable(
        title=f"{content[1]} × {style_title}, varied",
        rows=tuple(
            Row(key=f"r-{number}", title=title, picture=content[0], changes=dict(changes))
            for number, (title, changes) in enumerate(rows)
        ),
        columns=tuple(
            StyleColumn(
                key=f"c-{number}",
                title=title,
                styles=inputs,
                style_title=style_title,
                settings=settings.changed(changes),
            )
            for number, (title, changes) in enumerate(columns)
        ),
        sweep=True,
        masks=masks,
        protect=protect,
    )
