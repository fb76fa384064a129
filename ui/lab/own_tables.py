"""Tables that someone asked for: several pictures at once, or one picture under several settings (a sweep).

They are kept in the studio's records as these models.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from core import config, dials
from core.config import Settings
from core.errors import SettingsError
from core.sweep import Axis, Entry, grid, interpolation
from ui.lab import experts
from ui.lab.shown import Model
from ui.lab.tables import Column, Head, Table

MOST_CELLS = 36
MOST_VALUES = 12
LARGEST_SWEEP_LEVEL = 1

SCALE, BETWEEN = "scale", "between"
"""As what varies in a sweep: the scale of all styles, and the share of the second of two."""


class Row(Model):
    """A content."""

    key: str
    title: str
    picture: str
    """An input."""


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
    cells: tuple[tuple[Settings, ...], ...] = ()
    """Of a sweep: the settings of every cell, row by row, in place of those of its column."""
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
                shows_style=not self.cells,
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
            cells={
                (row.key, column.key): settings
                for row, line in zip(self.rows, self.cells, strict=False)
                for column, settings in zip(self.columns, line, strict=True)
            },
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
    return (
        turned | {SCALE: "Scale", BETWEEN: "Between two styles", "colour": "Colours", "seed": "Seed"} | experts.TITLES
    )


def axis(setting: str, text: str, styles: int) -> Axis:
    """One thing that varies in a sweep.

    Args:
        setting: A dial, `scale`, `between`, or a setting by its dotted name.
        text: Its values, apart by semicolons where there are any, else by commas; of `between`, how many pictures.
        styles: How many there are.

    Raises:
        SettingsError: No values, too many, or one that isn't of the right kind.
    """
    if setting == BETWEEN:
        return _between(text, styles)
    if setting == "levels":
        raise SettingsError("the size can't be varied", "Make a picture of the sweep large instead")
    values = [value.strip() for value in text.split(";" if ";" in text else ",") if value.strip()]
    if not 1 <= len(values) <= MOST_VALUES:
        raise SettingsError(f"'{setting}' has {len(values)} values", f"Give 1 to {MOST_VALUES}, with commas between")
    title = axes().get(setting, setting)
    return Axis(title, tuple(Entry(f"{title} {value}", _change(setting, value, styles)) for value in values))


def _between(text: str, styles: int) -> Axis:
    if styles != 2:
        raise SettingsError(f"there is no row of pictures between {styles} styles", "Choose two, all in one picture")
    count = _number(BETWEEN, text)
    if not 2 <= count <= MOST_VALUES:
        raise SettingsError(
            f"'{text}' pictures between two styles can't be", f"Give one number from 2 to {MOST_VALUES}"
        )
    return interpolation(int(count))


def _change(setting: str, value: str, styles: int) -> Callable[[Settings], Settings]:
    if setting in {dial.name for dial in dials.DIALS}:
        mark = _number(setting, value)
        return lambda settings: dials.apply(settings, {setting: mark})
    if setting == SCALE:
        scale = _number(setting, value)
        return lambda settings: settings.changed({"styles": _scaled(settings, scale, styles)})
    changes = experts.parse({setting: value})
    return lambda settings: settings.changed(changes)


def _scaled(settings: Settings, scale: float, styles: int) -> list[dict[str, float]]:
    return [{"weight": settings.style(number).weight, "scale": scale} for number in range(styles)]


def _number(setting: str, text: str) -> float:
    value = config.parse_assignments([f"value={text}"])["value"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f"'{text}' is not a number", f"Give numbers for '{setting}', with commas between")
    return float(value)


def sweep(
    content: tuple[str, str],
    styles: Sequence[tuple[str, str]],
    settings: Settings,
    down: Axis,
    across: Axis | None = None,
    masks: tuple[str | None, ...] = (),
    protect: str | None = None,
) -> OwnTable:
    """One picture under all combinations of what varies.

    Args:
        content: Its input and its title.
        styles: Likewise.
        settings: That are varied.
        down: What varies from row to row.
        across: What varies from column to column.
        masks: Of the styles.
        protect: Of the content.

    Raises:
        SettingsError: It is too large, or a value isn't allowed.
    """
    across = across or Axis("", (Entry("", lambda unchanged: unchanged),))
    if len(down.entries) * len(across.entries) > MOST_CELLS:
        count = len(down.entries) * len(across.entries)
        raise SettingsError(f"these would be {count} pictures", f"A sweep has at most {MOST_CELLS}")
    if settings.levels > LARGEST_SWEEP_LEVEL:
        raise SettingsError("a sweep is made of small pictures", f"Choose level {LARGEST_SWEEP_LEVEL} or below")
    cells = grid(settings, (down, across))
    style_title = " + ".join(title for _, title in styles)
    inputs = tuple(name for name, _ in styles)
    return OwnTable(
        title=f"{content[1]} × {style_title}, varied",
        rows=tuple(
            Row(key=f"r-{number}", title=entry.label, picture=content[0]) for number, entry in enumerate(down.entries)
        ),
        columns=tuple(
            StyleColumn(key=f"c-{number}", title=entry.label, styles=inputs, style_title=style_title, settings=settings)
            for number, entry in enumerate(across.entries)
        ),
        cells=tuple(tuple(cell.settings for cell in row) for row in cells),
        masks=masks,
        protect=protect,
    )
