"""What is in the cells of the tables, and the tasks that fill them and keep up with them.

Each cell is a short chain of jobs: one at level 0, so that there soon is something to see everywhere, then one at the
table's level, then whatever someone enlarges. Jobs find their cells by tags, and by their keys nothing is computed
twice, however often the lab is started.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from core import __version__, samples
from core.config import Settings
from core.errors import UserError
from core.studio import Event, Job, JobState, Studio, Subscription
from core.studio.jobs import NoSuchJobError, QueueFullError, new_id
from ui.lab.events import Feed, Message, Topic
from ui.lab.networks import Networks
from ui.lab.shown import CellView, Model, job_view
from ui.lab.tables import FOLDER, Column, Head, LabConfig, Table, TableConfig, recipe_of, table_of
from ui.lab.threads import in_thread
from ui.lab.uploads import Uploads

log = logging.getLogger(__name__)

TABLE_OWNER = "table"
"""Of the pictures that the lab begins by itself; they take turns with those that people ask for."""
LAB_OWNER = "lab"
OWNERS = (LAB_OWNER, TABLE_OWNER)

_TABLES_SPACE = "lab.tables"
_INPUTS_SPACE = "lab.inputs"
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".heic", ".heif"})
_STYLE_SIDE = 1024
_FOLDER_SECONDS = 5.0
_FULL_SECONDS = 5.0
_KNOWN_JOBS = 5000
_LISTED_JOBS = 200
_PENDING_TABLE_JOBS = 500

CellKey = tuple[str, str, str]
"""Table, row, column."""


class QueueView(Model):
    """How busy the studio is."""

    paused: bool
    queued: int
    running: int


class Named(Model):
    """A table by its name; its rows, columns or heads have changed."""

    name: str


class Gone(Model):
    """A job that was deleted."""

    id: str


@dataclass(frozen=True)
class Picture:
    """A picture that can be had by its key: a sample, or a file in the folder."""

    head: Head
    kind: str
    """`content` or `style`."""
    file: Path | None = None


@dataclass(frozen=True)
class Wanted:
    """A picture that someone asked for: the id of an input, and what to call it."""

    input: str
    title: str


class Board:
    """All tables as they are now.

    Args:
        studio: Computes.
        feed: Is told what changes.
        uploads: Reads files in the folder, with the same care as those of strangers.
        networks: Part of every snapshot.
        configuration: Which tables there are.
        folder: Where own pictures lie.
    """

    def __init__(
        self,
        studio: Studio,
        feed: Feed,
        uploads: Uploads,
        networks: Networks,
        configuration: LabConfig,
        folder: Path,
    ) -> None:
        self._studio = studio
        self._feed = feed
        self._uploads = uploads
        self._networks = networks
        self._configuration = configuration
        self._folder = folder
        self.pictures: dict[str, Picture] = _sample_pictures()
        """All that can be chosen, by key."""
        self.tables: dict[str, Table] = {}
        self._inputs: dict[str, str] = {}
        self._coming: dict[str, asyncio.Task[str]] = {}
        self._cells: dict[CellKey, dict[str, Job]] = defaultdict(dict)
        self._places: dict[str, CellKey] = {}
        self._states: dict[str, JobState] = {}
        self._asked: set[str | None] = set()
        self._problems: dict[CellKey, str] = {}

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Takes in what is there, then follows the studio and fills the tables until the end of the block."""
        with self._studio.subscribe() as events:
            await self._load()
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._follow(events))]
            tasks.append(asyncio.create_task(self._fill()))
            try:
                yield
            finally:
                tasks += self._coming.values()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    # Seeing

    def cell(self, key: CellKey) -> CellView:
        """One cell as it is now."""
        table, row, column = key
        current, finished = self._chosen(key)
        earlier = finished if current is not finished else None
        view = job_view(current, earlier) if current else None
        return CellView(table=table, row=row, column=column, job=view, problem=self._problems.get(key, ""))

    def cells(self, table: Table) -> list[CellView]:
        """All cells of a table, row by row."""
        return [self.cell((table.name, row.key, column.head.key)) for row in table.rows for column in table.columns]

    def input_of(self, key: str) -> str | None:
        """The id of a picture that is ready to be shown."""
        return self._inputs.get(key)

    def queue(self) -> QueueView:
        """How busy the studio is."""
        running = sum(state is JobState.RUNNING for state in self._states.values())
        return QueueView(paused=self._studio.queue_paused, queued=len(self._studio.queue()), running=running)

    async def job(self, job_id: str) -> Job:
        """A job of the lab.

        Raises:
            NoSuchJobError: There is none of that id, or it is none of ours.
        """
        job = await self._studio.job(job_id)
        if job.owner not in OWNERS:
            raise NoSuchJobError("there is no such job", "It may have been deleted")
        return job

    async def asked_for(self, limit: int = _LISTED_JOBS, before: float | None = None) -> list[Job]:
        """The pictures that people asked for, the newest first."""
        return await self._studio.jobs(owner=LAB_OWNER, limit=limit, before=before)

    async def snapshot(self, topic: Topic) -> list[Message]:
        """Everything that a page shows, as it is now."""
        messages: list[Message] = [("queue", self.queue()), ("network", self._networks.view)]
        if topic.table is not None:
            table = self.tables.get(topic.table)
            return messages + [("cell", cell) for cell in (self.cells(table) if table else ())]
        jobs = [await self.job(topic.job)] if topic.job else await self.asked_for()
        return messages + [("job", job_view(job)) for job in jobs]

    # Asking

    async def picture(self, key: str) -> str:
        """The id of a sample or of a file in the folder, painted or read if need be.

        Raises:
            NoSuchJobError: There is no picture of this key.
            UserError: It can't be read.
        """
        if key not in self.pictures:
            raise NoSuchJobError("there is no such picture")
        if key not in self._inputs:
            if key not in self._coming:
                self._coming[key] = asyncio.create_task(self._prepare(self.pictures[key]))
                self._coming[key].add_done_callback(lambda _: self._coming.pop(key))
            return await asyncio.shield(self._coming[key])
        return self._inputs[key]

    async def submit(self, content: Wanted, style: Wanted, settings: Settings) -> Job:
        """Asks for one picture.

        Raises:
            UserError: As `Studio.submit`.
        """
        tags = {"content_title": content.title, "style_title": style.title}
        return await self._studio.submit(LAB_OWNER, content.input, [style.input], settings, tags=tags)

    async def add_table(self, contents: Sequence[Wanted], styles: Sequence[Wanted], settings: Settings) -> Table:
        """Asks for every content in every style, as a table of their own.

        Raises:
            UserError: The first picture can't be made; then there is no table.
        """
        await self._studio.estimate(settings, contents[0].input, [styles[0].input])
        name = f"t-{new_id()[:12]}"
        kept = {
            "title": f"{_count(contents, 'content')} in {_count(styles, 'style')}",
            "created": time.time(),
            "contents": [[content.input, content.title] for content in contents],
            "styles": [[style.input, style.title] for style in styles],
            "settings": settings.model_dump(mode="json"),
        }
        await self._studio.records.put(_TABLES_SPACE, name, kept)
        table = self._keep_table(name, kept)
        for column in table.columns:
            for row in table.rows:
                await self._ask(table, row, column, settings.levels)
        return table

    async def enlarge(self, job: Job) -> Job:
        """Asks for the same picture at the next level.

        Raises:
            UserError: As `Studio.submit`.
        """
        settings = job.settings.changed({"levels": job.settings.levels + 1})
        key = f"enlarged {job.id} {job.attempt}"
        return await self._studio.submit(
            LAB_OWNER, job.content, job.styles, settings, start=job.start, key=key, tags=job.tags
        )

    # Below: taking in

    async def _load(self) -> None:
        for key, input_id in (await self._studio.records.all(_INPUTS_SPACE)).items():
            with contextlib.suppress(NoSuchJobError):  # nothing used it for long
                await self._studio.input_path(input_id)
                self._inputs[key.removesuffix(f" {__version__}")] = input_id
        for name, kept in (await self._studio.records.all(_TABLES_SPACE)).items():
            self._keep_table(name, kept)
        self._arrange(await in_thread(_files_in, self._folder))
        for owner in OWNERS:
            for job in await self._studio.jobs(owner=owner, limit=_KNOWN_JOBS):
                self._put(job)

    def _keep_table(self, name: str, kept: Mapping[str, Any]) -> Table:
        """A table that someone asked for."""
        settings = Settings.model_validate(kept["settings"])
        rows = tuple(Head(input_id, title, input_id) for input_id, title in kept["contents"])
        heads = [Head(input_id, title, input_id) for input_id, title in kept["styles"]]
        columns = tuple(Column(head, settings, head.title) for head in heads)
        self._inputs |= {head.key: head.key for head in (*rows, *heads)}
        self.tables[name] = Table(name, kept["title"], "", settings.levels, rows, columns, own=True)
        return self.tables[name]

    def _arrange(self, files: Iterable[Picture]) -> None:
        """Makes the tables of the configuration out of the samples and the files in the folder."""
        self.pictures = _sample_pictures() | {picture.head.key: picture for picture in files}
        own = {name: table for name, table in self.tables.items() if table.own}
        arranged = {wanted.name: self._arranged(wanted) for wanted in self._configuration.tables}
        changed = [name for name, table in arranged.items() if self.tables.get(name) != table]
        self.tables = arranged | own
        for name in changed:
            self._tell_table(name)

    def _arranged(self, wanted: TableConfig) -> Table:
        known: dict[str, list[Head]] = {key: [picture.head] for key, picture in self.pictures.items()}
        folders = [
            {FOLDER: [picture.head for picture in self.pictures.values() if picture.file and picture.kind == kind]}
            for kind in ("content", "style")
        ]
        return table_of(wanted, known | folders[0], known | folders[1])

    async def _follow(self, events: Subscription) -> None:
        async for event in events:
            self._take(event)
            if event.kind == "gap":
                await self._load()

    def _take(self, event: Event) -> None:
        if event.job is not None and event.job.owner in OWNERS:
            job = event.job
            self._put(job)
            self._feed.publish(("job", job.id), "job", lambda: job_view(job))
            self._tell_cell(job.id)
        elif event.kind == "removed":
            self._tell_removed(event.job_id)
        elif event.kind == "queue":
            self._tell_queue()

    def _put(self, job: Job) -> None:
        key = _cell_of(job)
        if key is not None:
            self._cells[key][job.id] = job
            self._places[job.id] = key
            self._asked.add(job.key)
        if self._states.get(job.id) is not job.state:
            self._states[job.id] = job.state
            self._tell_queue()

    def _tell_cell(self, job_id: str) -> None:
        if key := self._places.get(job_id):
            self._feed.publish(("cell", *key), "cell", lambda: self.cell(key))

    def _tell_removed(self, job_id: str) -> None:
        self._states.pop(job_id, None)
        if key := self._places.get(job_id):
            self._cells[key].pop(job_id, None)
            self._tell_cell(job_id)
            del self._places[job_id]
        self._feed.publish(("job", job_id), "removed", lambda: Gone(id=job_id))
        self._tell_queue()

    def _tell_queue(self) -> None:
        self._feed.publish(("queue",), "queue", self.queue)

    def _tell_table(self, name: str) -> None:
        self._feed.publish(("table", name), "table", lambda: Named(name=name))

    def _chosen(self, key: CellKey) -> tuple[Job | None, Job | None]:
        """The job that a cell is about, and the finished one whose picture it may show meanwhile."""
        jobs, older = self._jobs_of(key)
        finished = _largest_done(jobs)
        open_jobs = [job for job in jobs if job.state.pending]
        first = min(open_jobs, key=_urgency, default=None)
        later = [job for job in jobs if finished is None or job.created > finished.created]
        before = finished or _largest_done(older)
        return first or max(later, key=_size, default=None) or before, before

    def _jobs_of(self, key: CellKey) -> tuple[list[Job], list[Job]]:
        """The jobs of a cell: those of its present pictures and settings, and those of what the table was before."""
        recipe, jobs = self._recipe(key), list(self._cells[key].values())
        current = [job for job in jobs if recipe in (None, job.tags["recipe"])]
        return current, [job for job in jobs if job not in current]

    def _recipe(self, key: CellKey) -> str | None:
        table = self.tables.get(key[0])
        column = next((column for column in table.columns if column.head.key == key[2]), None) if table else None
        row = next((row for row in table.rows if row.key == key[1]), None) if table else None
        if column is None or row is None:
            return None
        content, style = self._inputs.get(row.picture), self._inputs.get(column.head.picture)
        return recipe_of(column.settings, content, style) if content and style else None

    # Below: filling

    async def _fill(self) -> None:
        """Asks for what is missing, and looks for new files in the folder."""
        while True:
            try:
                await self._drop_outdated()
                for table, row, column, level in self._missing():
                    await self._ask(table, row, column, level)
                for key in self.pictures:  # so that everything can be chosen by sight
                    await self._input(key)
            except UserError as error:
                log.error("the tables can't be filled: %s", error)
            except Exception:
                log.exception("the tables could not be filled")
            await asyncio.sleep(_FOLDER_SECONDS)
            self._arrange(await in_thread(_files_in, self._folder))

    async def _drop_outdated(self) -> None:
        """Drops what the lab began by itself and no table wants any more, because its settings or pictures changed."""
        for key in list(self._cells):
            for job in self._outdated(key):
                self._asked.discard(job.key)  # it may be wanted again one day
                await self._studio.delete(job.id)

    def _outdated(self, key: CellKey) -> list[Job]:
        recipe, wanted = self._recipe(key), self._is_wanted(key)
        if wanted and recipe is None:  # its pictures aren't ready
            return []
        pending = [job for job in self._cells[key].values() if job.state.pending and job.owner == TABLE_OWNER]
        return [job for job in pending if not wanted or job.tags["recipe"] != recipe]

    def _is_wanted(self, key: CellKey) -> bool:
        """Whether there is such a cell."""
        name, row_key, column_key = key
        table = self.tables.get(name)
        if table is None:
            return False
        return row_key in {row.key for row in table.rows} and column_key in {c.head.key for c in table.columns}

    def _missing(self) -> Iterator[tuple[Table, Head, Column, int]]:
        """Every cell's first picture, then every cell's picture at its table's level."""
        tables = [table for table in self.tables.values() if not table.own]
        for at_level_0 in (True, False):
            for table in tables:
                for column in table.columns:
                    for row in table.rows:
                        if at_level_0 or table.level:
                            yield table, row, column, 0 if at_level_0 else table.level

    async def _ask(self, table: Table, row: Head, column: Column, level: int) -> None:
        """Submits a cell's job, once."""
        key = (table.name, row.key, column.head.key)
        try:
            content, style = await self._input(row.picture), await self._input(column.head.picture)
            recipe = recipe_of(column.settings, content, style)
            name = "/".join((*key, recipe, str(level)))
            if name in self._asked:
                return
            self._asked.add(name)
            tags = {
                "table": table.name,
                "row": row.key,
                "column": column.head.key,
                "recipe": recipe,
                "content_title": row.title,
                "style_title": column.style_title,
            }
            settings = column.settings.changed({"levels": level})
            owner = LAB_OWNER if table.own else TABLE_OWNER
            await self._patiently(owner, content, style, settings, name, tags)
        except UserError as error:
            self._problems[key] = str(error)
            self._feed.publish(("cell", *key), "cell", lambda: self.cell(key))

    async def _patiently(
        self, owner: str, content: str, style: str, settings: Settings, name: str, tags: Mapping[str, str]
    ) -> None:
        """Submits, and waits while the queue is full."""
        while True:
            try:
                await self._studio.submit(
                    owner, content, [style], settings, key=name, tags=tags, pending=_PENDING_TABLE_JOBS
                )
                return
            except QueueFullError:
                await asyncio.sleep(_FULL_SECONDS)

    async def _input(self, key: str) -> str:
        return self._inputs[key] if key in self._inputs else await self.picture(key)

    async def _prepare(self, picture: Picture) -> str:
        """Paints or reads a picture and keeps it as an input."""
        head = picture.head
        data = await self._read(picture.file, head.title) if picture.file else await in_thread(_painted, head)
        input_id = await self._studio.add_input(TABLE_OWNER, data)
        await self._studio.records.put(_INPUTS_SPACE, f"{head.key} {__version__}", input_id)
        self._inputs[head.key] = input_id
        for name, table in self.tables.items():
            if head.picture in {h.picture for h in (*table.rows, *(column.head for column in table.columns))}:
                self._tell_table(name)
        return input_id

    async def _read(self, file: Path, title: str) -> bytes:
        data = await in_thread(_file_bytes, file, self._uploads.limits.file_bytes)
        return (await self._uploads.picture(data, title)).data


BOARD = web.AppKey("board", Board)


def _size(job: Job) -> tuple[int, float]:
    """The larger, and of one size the later."""
    return job.settings.levels, job.created


def _largest_done(jobs: Iterable[Job]) -> Job | None:
    return max((job for job in jobs if job.state is JobState.DONE), key=_size, default=None)


def _urgency(job: Job) -> tuple[bool, int]:
    """What a cell shows first of the jobs still to come: one that runs, then the smallest."""
    return job.state is not JobState.RUNNING, job.settings.levels


def _cell_of(job: Job) -> CellKey | None:
    tags = job.tags
    return (tags["table"], tags["row"], tags["column"]) if "table" in tags else None


def _count(wanted: Sequence[Wanted], noun: str) -> str:
    return wanted[0].title if len(wanted) == 1 else f"{len(wanted)} {noun}s"


def _sample_pictures() -> dict[str, Picture]:
    kinds = {"photograph": "content", "style": "style"}
    known = (*samples.photographs(), *samples.styles())
    return {sample.name: Picture(Head(sample.name, sample.title, sample.name), kinds[sample.kind]) for sample in known}


def _files_in(folder: Path) -> list[Picture]:
    """The pictures in the folder; a file that was changed is another picture."""
    found = []
    for kind in ("content", "style"):
        with contextlib.suppress(OSError):  # there need not be a folder
            for path in sorted((folder / kind).iterdir()):
                if path.suffix.lower() in _SUFFIXES and path.is_file():
                    found.append(_file_picture(path, kind))
    return found


def _file_picture(path: Path, kind: str) -> Picture:
    about = path.stat()
    name = f"{kind} {path.name} {about.st_mtime_ns} {about.st_size}"
    key = f"f-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}"
    return Picture(Head(key, path.stem[:60], key), kind, path)


def _file_bytes(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise UserError(f"{path.name} is larger than {limit / 2**20:.0f} MB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} can't be read: {error.strerror or error}") from error


def _painted(head: Head) -> bytes:
    from core import images  # noqa: PLC0415

    return images.encode(samples.load(head.key, _STYLE_SIDE, _STYLE_SIDE))
