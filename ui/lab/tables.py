"""The tables: rows of contents, columns of styles or of settings.

`configs/lab.toml` describes the tables that the lab fills by itself; several pictures that someone asks for at once
become a table too, which is kept in the studio's records. What is in their cells is the board's business.
"""

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from core import config, samples
from core.config import MAX_LEVEL, Settings
from core.errors import SettingsError, UserError
from ui.lab.shown import Model
from ui.lab.uploads import UploadLimits

DEFAULT_CONFIG = config.PRESETS_DIRECTORY.parent / "lab.toml"
FOLDER = "folder"
"""In a table's contents or styles: all pictures in that part of the folder."""


# ── The configuration ────────────────────────────────────────────────────────────────────────────────────────────────

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class ColumnConfig(Model):
    """A column of settings."""

    title: str
    note: str = ""
    preset: str = config.DEFAULT_PRESET
    settings: dict[str, Any] = Field(default_factory=dict)
    """What it changes in the preset."""


class TableConfig(Model):
    """A table that the lab fills by itself."""

    name: Name
    title: str
    description: str = ""
    contents: Names
    styles: Names
    preset: str = config.DEFAULT_PRESET
    settings: dict[str, Any] = Field(default_factory=dict)
    """What all of the table changes in the preset."""
    level: Annotated[int, Field(ge=0, le=MAX_LEVEL)] = 1
    """To which every cell grows after its first picture at level 0."""
    columns: tuple[ColumnConfig, ...] = ()
    """Columns of settings; the table then has one style."""
    noise: bool = False
    """Show the noise of each column under the pictures."""

    @model_validator(mode="after")
    def _check_pictures(self) -> Self:
        known = [*sample_names(), FOLDER]
        for key, names in (("contents", self.contents), ("styles", self.styles)):
            for name in names:
                if name not in known:
                    raise ValueError(f"{key}: there is no picture '{name}'. {_suggestion(name, known)}")
        if self.columns and (len(self.styles) != 1 or FOLDER in self.styles):
            raise ValueError("styles: a table with columns of settings has exactly one style")
        if len({_slug(column.title) for column in self.columns}) < len(self.columns):
            raise ValueError("columns: two of them have the same title")
        return self

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        try:
            self.variants()
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    def variants(self) -> list[Settings]:
        """The settings of each column; those of all columns, where columns are styles."""
        columns = self.columns or (ColumnConfig(title="", preset=self.preset),)
        return [config.load(column.preset, self.settings).changed(column.settings) for column in columns]


class LabConfig(Model):
    """What the lab shows and takes; `configs/lab.toml`."""

    folder: str = "pictures"
    """A folder of one's own pictures, `content/` and `style/`; relative to the data directory."""
    hosts: tuple[str, ...] = ()
    """Further names by which the lab may be addressed, such as that of a proxy before it."""
    uploads: UploadLimits = UploadLimits()
    tables: tuple[TableConfig, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [table.name for table in self.tables]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two tables are called '{twice}'")
        return self


def read_config(path: Path = DEFAULT_CONFIG) -> LabConfig:
    """Reads a configuration file.

    Raises:
        SettingsError: It can't be read, or something in it isn't allowed; the cause names the key.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid TOML: {error}") from None
    try:
        return LabConfig.model_validate(data)
    except ValidationError as error:
        raise _explained(error, path.name) from None


def sample_names() -> list[str]:
    """The pictures that are always at hand."""
    return [sample.name for sample in (*samples.photographs(), *samples.styles())]


def _explained(error: ValidationError, file: str) -> SettingsError:
    """The first complaint as a line for a person, with the key that it is about; a misspelt key explains others."""
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"]) or "the whole"
    if first["type"] == "extra_forbidden":
        *above, unknown = first["loc"]
        return SettingsError(f"{file}: unknown key '{key}'", _suggestion(str(unknown), _keys_at(above)))
    given = "" if isinstance(first["input"], Mapping) else f" (given: {first['input']!r})"
    return SettingsError(f"{file}: {key}: {first['msg'].removeprefix('Value error, ')}{given}")


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys allowed in the table at `location`."""
    models: dict[str, type[Model]] = {"tables": TableConfig, "columns": ColumnConfig, "uploads": UploadLimits}
    names = [part for part in location if isinstance(part, str)]
    return list((models[names[-1]] if names else LabConfig).model_fields)


def _suggestion(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    did_you = f"Did you mean '{close[0]}'? " if close else ""
    return f"{did_you}Allowed are: {', '.join(names)}"


# ── A table's shape ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Head:
    """The head of a row or a column.

    Attributes:
        key: Unique in the table, and safe in addresses.
        title: What to call it.
        picture: Key of the picture that it stands for.
        note: A line under the title.
    """

    key: str
    title: str
    picture: str
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column: a style, or several, with settings. Its head shows the style where that tells columns apart."""

    head: Head
    settings: Settings
    style_title: str
    shows_style: bool = True
    further: tuple[str, ...] = ()
    """Keys of the styles that are in its pictures beside that of its head."""

    @property
    def styles(self) -> tuple[str, ...]:
        """Keys of all its styles."""
        return (self.head.picture, *self.further)


@dataclass(frozen=True)
class Order:
    """What is to be painted in a cell.

    Attributes:
        content: Key of the picture.
        styles: Likewise, at least one.
        settings: With which.
        title: What to call its style.
        masks: Inputs by the position of their style; none: everywhere.
        protect: Input; what is to keep its content.
    """

    content: str
    styles: tuple[str, ...]
    settings: Settings
    title: str
    masks: tuple[str | None, ...] = ()
    protect: str | None = None

    @property
    def pictures(self) -> tuple[str, ...]:
        """Keys of all pictures that it needs."""
        return (self.content, *self.styles)

    def recipe(self, inputs: Sequence[str]) -> str:
        """Says whether two pictures differ in nothing but their size.

        Args:
            inputs: What `pictures` have become.
        """
        plain = self.settings.model_dump_json(exclude={"levels", "title", "description"})
        regions = [str(mask) for mask in (*self.masks, self.protect)] if any((*self.masks, self.protect)) else []
        return hashlib.sha256(" ".join([plain, *inputs, *regions]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """A table without what is in its cells."""

    name: str
    title: str
    description: str
    level: int
    rows: tuple[Head, ...]
    columns: tuple[Column, ...]
    noise: bool = False
    own: bool = False
    """Someone asked for it; the lab didn't begin it by itself."""
    cells: Mapping[tuple[str, str], Settings] = field(default_factory=dict)
    """Of a sweep: the settings of every cell by the keys of row and column, in place of those of its column."""
    masks: tuple[str | None, ...] = ()
    protect: str | None = None

    def order(self, row: Head, column: Column) -> Order:
        """What is to be painted in a cell."""
        settings = self.cells.get((row.key, column.head.key), column.settings)
        return Order(row.picture, column.styles, settings, column.style_title, self.masks, self.protect)


def table_of(
    wanted: TableConfig, contents: Mapping[str, Sequence[Head]], styles: Mapping[str, Sequence[Head]]
) -> Table:
    """A table as the configuration describes it.

    Args:
        wanted: The description.
        contents: What the names in it stand for.
        styles: Likewise.
    """
    rows = [head for name in wanted.contents for head in contents[name]]
    heads = [head for name in wanted.styles for head in styles[name]]
    return Table(
        name=wanted.name,
        title=wanted.title,
        description=wanted.description,
        level=wanted.level,
        rows=tuple(rows),
        columns=tuple(_columns(wanted, heads)),
        noise=wanted.noise,
    )


def _columns(wanted: TableConfig, heads: Sequence[Head]) -> list[Column]:
    variants = wanted.variants()
    if not wanted.columns:
        return [Column(head, variants[0], head.title) for head in heads]
    style = heads[0]
    columns = []
    for column, settings in zip(wanted.columns, variants, strict=True):
        head = Head(_slug(column.title), column.title, style.picture, column.note)
        columns.append(Column(head, settings, f"{style.title}, {column.title.lower()}", shows_style=False))
    return columns


def _slug(title: str) -> str:
    """A title as a key that stays the same where columns are moved."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "column"
