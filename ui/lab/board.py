"""What is in the cells of the tables, followed from the studio and told to the pages.

Jobs find their cells by tags, so that nothing else has to be kept of the tables that the configuration describes.
"""

import asyncio
import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from core.config import Settings
from core.errors import UserError
from core.studio import Event, Job, JobState, Studio, Subscription
from core.studio.jobs import NoSuchJobError, new_id
from ui.lab.events import Feed, Message, Topic
from ui.lab.networks import Networks
from ui.lab.own_tables import OwnTable
from ui.lab.shelf import Shelf
from ui.lab.shown import CellView, Model, job_view
from ui.lab.tables import FOLDER, Head, LabConfig, Order, Table, TableConfig, table_of

log = logging.getLogger(__name__)

STUDIO = web.AppKey("studio", Studio)

TABLE_OWNER = "table"
"""Of the pictures that the lab begins by itself; they take turns with those that people ask for."""
LAB_OWNER = "lab"
OWNERS = (LAB_OWNER, TABLE_OWNER)

_SPACE = "lab.tables"
_KNOWN_JOBS = 5000
_LISTED_JOBS = 200

CellKey = tuple[str, str, str]
"""Table, row, column."""


class QueueView(Model):
    """How busy the studio is."""

    paused: bool
    queued: int
    running: int
    text: str
    """The same in words."""


class Named(Model):
    """A table by its name; its rows, columns or heads have changed."""

    name: str


class Gone(Model):
    """A job that was deleted."""

    id: str


@dataclass(frozen=True)
class Wanted:
    """A picture that someone asked for: the id of an input, and what to call it."""

    input: str
    title: str

    @property
    def pair(self) -> tuple[str, str]:
        """Both."""
        return self.input, self.title


@dataclass(frozen=True)
class Regions:
    """Where styles go, and what is to keep its content, by the ids of inputs."""

    masks: tuple[str | None, ...] = ()
    protect: str | None = None


EVERYWHERE = Regions()


class Board:
    """All tables as they are now.

    Args:
        studio: Computes.
        feed: Is told what changes.
        shelf: The pictures that tables name.
        networks: Part of every snapshot.
        configuration: Which tables there are.
    """

    def __init__(self, studio: Studio, feed: Feed, shelf: Shelf, networks: Networks, configuration: LabConfig) -> None:
        self._studio = studio
        self._feed = feed
        self._shelf = shelf
        self._networks = networks
        self._configuration = configuration
        self.tables: dict[str, Table] = {}
        """By name; those of the configuration first."""
        self.wanting = asyncio.Event()
        """Set when there is something new to be asked for."""
        self._new: dict[str, Mapping[str, Any]] = {}
        self._cells: dict[CellKey, dict[str, Job]] = defaultdict(dict)
        self._places: dict[str, CellKey] = {}
        self._states: dict[str, JobState] = {}
        self._problems: dict[CellKey, str] = {}

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Takes in what is there, then follows the studio until the end of the block."""
        with self._studio.subscribe() as events:
            await self._load()
            task = asyncio.create_task(self._follow(events))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

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

    def queue(self) -> QueueView:
        """How busy the studio is."""
        running = sum(state is JobState.RUNNING for state in self._states.values())
        queued, paused = len(self._studio.queue()), self._studio.queue_paused
        busy = f"{running} painting · {queued} waiting" if running or queued else "Nothing to do"
        return QueueView(paused=paused, queued=queued, running=running, text=f"Paused · {busy}" if paused else busy)

    async def job(self, job_id: str) -> Job:
        """A job of the lab.

        Raises:
            NoSuchJobError: There is none of that id, or it is none of ours.
        """
        job = await self._studio.job(job_id)
        if job.owner not in OWNERS:
            raise NoSuchJobError("there is no such job", "It may have been deleted")
        return job

    async def asked_for(self) -> list[Job]:
        """The pictures that people asked for, the newest first."""
        return await self._studio.jobs(owner=LAB_OWNER, limit=_LISTED_JOBS)

    async def snapshot(self, topic: Topic) -> list[Message]:
        """Everything that a page shows, as it is now."""
        messages: list[Message] = [("queue", self.queue()), ("network", self._networks.view)]
        if topic.table is not None:
            table = self.tables.get(topic.table)
            return messages + [("cell", cell) for cell in (self.cells(table) if table else ())]
        jobs = [await self.job(topic.job)] if topic.job else await self.asked_for()
        return messages + [("job", job_view(job)) for job in jobs]

    # Asking

    async def submit(
        self,
        content: Wanted,
        styles: Sequence[Wanted],
        settings: Settings,
        regions: Regions = EVERYWHERE,
        *,
        dials: Mapping[str, float] | None = None,
        film: bool = False,
    ) -> Job:
        """Asks for one picture.

        Args:
            content: What it shows.
            styles: In which it is painted, all together.
            settings: With which.
            regions: Where.
            dials: Where they stand, to be shown where they are turned on the way.
            film: Whether to make a film of it.

        Raises:
            UserError: As `Studio.submit`.
        """
        tags = {"content_title": content.title, "style_title": _joined(styles)}
        if dials:
            tags["dials"] = json.dumps(dials)
        return await self._studio.submit(
            LAB_OWNER,
            content.input,
            [style.input for style in styles],
            settings,
            masks=regions.masks,
            protect=regions.protect,
            film=film,
            tags=tags,
        )

    async def add_table(self, asked: OwnTable) -> Table:
        """Asks for all pictures of a table.

        Raises:
            UserError: The first picture can't be made; then there is no table.
        """
        content, *styles = asked.first
        await self._studio.estimate(
            asked.columns[0].settings, content, styles, masks=asked.masks, protect=asked.protect
        )
        name = f"t-{new_id()[:12]}"
        kept = asked.model_dump(mode="json")
        await self._studio.records.put(_SPACE, name, kept)
        table = self._keep(name, kept)
        self.wanting.set()
        return table

    async def enlarge(self, job: Job, level: int) -> Job:
        """Asks for the same picture at a larger level, with the weights that it ended with.

        Raises:
            UserError: As `Studio.submit`.
        """
        return await self._studio.submit(
            LAB_OWNER,
            job.content,
            job.styles,
            job.steered_settings.changed({"levels": level}),
            start=job.start,
            masks=job.masks,
            protect=job.protect,
            film=job.film,
            key=f"enlarged {job.id} {job.attempt} {level}",
            tags=job.tags,
        )

    # For whoever fills the tables

    def arrange(self) -> None:
        """Makes the tables of the configuration out of what is on the shelf."""
        own = {name: table for name, table in self.tables.items() if table.own}
        arranged = {wanted.name: self._arranged(wanted) for wanted in self._configuration.tables}
        changed = [name for name, table in arranged.items() if self.tables.get(name) != table]
        self.tables = arranged | own
        for name in changed:
            self._tell_table(name)

    def new_tables(self) -> list[Table]:
        """Tables that people asked for, and whose jobs haven't all been submitted."""
        return [self.tables[name] for name in self._new]

    async def asked_for_all(self, table: Table) -> None:
        """Notes that all jobs of a new table have been submitted: what is deleted from now on stays so."""
        await self._studio.records.put(_SPACE, table.name, {**self._new[table.name], "asked": True})
        del self._new[table.name]

    def has(self, key: CellKey, name: str) -> bool:
        """Whether a cell has the job of this key."""
        return any(job.key == name for job in self._cells[key].values())

    def outdated(self) -> list[Job]:
        """Pending jobs that the lab began by itself, and that are not of their cell's present pictures and settings."""
        return [job for key in list(self._cells) for job in self._outdated_in(key)]

    def tell_problem(self, key: CellKey, error: UserError) -> None:
        """Says in a cell why there can't be a picture."""
        if self._problems.get(key) != str(error):
            self._problems[key] = str(error)
            self._tell_cell(key)

    def tell_ready(self, picture: str) -> None:
        """Tells the tables that show a picture in their heads that it is ready."""
        for name, table in self.tables.items():
            if picture in {head.picture for head in (*table.rows, *(column.head for column in table.columns))}:
                self._tell_table(name)

    # Below: taking in

    async def _load(self) -> None:
        for known in (self._cells, self._places, self._states):
            known.clear()
        for name, kept in (await self._studio.records.all(_SPACE)).items():
            try:
                self._keep(name, kept)
            except ValidationError as error:  # of another version perhaps; it must not hide all the others
                log.error("table %s can't be read and is left out: %s", name, error)
        self.arrange()
        for owner in OWNERS:
            for job in await self._studio.jobs(owner=owner, limit=_KNOWN_JOBS):
                self._put(job)

    def _keep(self, name: str, kept: Mapping[str, Any]) -> Table:
        """A table that someone asked for."""
        table = OwnTable.model_validate(kept).table(name)
        for picture in {
            picture for row in table.rows for column in table.columns for picture in (row.picture, *column.styles)
        }:
            self._shelf.adopt(picture)
        self.tables[name] = table
        if not kept["asked"]:
            self._new[name] = kept
        return table

    def _arranged(self, wanted: TableConfig) -> Table:
        pictures = self._shelf.pictures
        known: dict[str, list[Head]] = {key: [picture.head] for key, picture in pictures.items()}
        folders = [
            {FOLDER: [picture.head for picture in pictures.values() if picture.file and picture.kind == kind]}
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
            self._take_job(event.job)
        elif event.kind == "removed":
            self._take_removed(event.job_id)
        elif event.kind == "queue":
            self._tell_queue()

    def _take_job(self, job: Job) -> None:
        self._put(job)
        self._feed.publish(("job", job.id), "job", lambda: job_view(job))
        if key := self._places.get(job.id):
            self._tell_cell(key)

    def _put(self, job: Job) -> None:
        if key := _cell_of(job):
            self._cells[key][job.id] = job
            self._places[job.id] = key
            self._problems.pop(key, None)
        if self._states.get(job.id) is not job.state:
            self._states[job.id] = job.state
            self._tell_queue()

    def _take_removed(self, job_id: str) -> None:
        self._states.pop(job_id, None)
        if key := self._places.pop(job_id, None):
            self._cells[key].pop(job_id, None)
            self._tell_cell(key)
        self._feed.publish(("job", job_id), "removed", lambda: Gone(id=job_id))
        self._tell_queue()

    def _tell_cell(self, key: CellKey) -> None:
        self._feed.publish(("cell", *key), "cell", lambda: self.cell(key))

    def _tell_queue(self) -> None:
        self._feed.publish(("queue",), "queue", self.queue)

    def _tell_table(self, name: str) -> None:
        self._feed.publish(("table", name), "table", lambda: Named(name=name))

    # Below: what a cell shows

    def _chosen(self, key: CellKey) -> tuple[Job | None, Job | None]:
        """The job that a cell is about, and the finished one whose picture it may show meanwhile."""
        jobs, older = self._jobs_of(key)
        finished = _largest_done(jobs)
        first = min((job for job in jobs if job.state.pending), key=_urgency, default=None)
        later = [job for job in jobs if finished is None or job.created > finished.created]
        before = finished or _largest_done(older)
        return first or max(later, key=_size, default=None) or before, before

    def _jobs_of(self, key: CellKey) -> tuple[list[Job], list[Job]]:
        """The jobs of a cell: those of its present pictures and settings, and those of what the table was before."""
        recipe, jobs = self._recipe(key), list(self._cells[key].values())
        current = [job for job in jobs if recipe in (None, job.tags["recipe"])]
        return current, [job for job in jobs if job not in current]

    def _outdated_in(self, key: CellKey) -> Iterator[Job]:
        order, recipe = self._find(key), self._recipe(key)
        if order and recipe is None:  # its pictures aren't ready, so nobody knows
            return
        for job in self._cells[key].values():
            if job.state.pending and job.owner == TABLE_OWNER and job.tags["recipe"] != recipe:
                yield job

    def _recipe(self, key: CellKey) -> str | None:
        """Of a cell's present pictures and settings; none where they aren't ready, or there is no such cell."""
        found = self._find(key)
        if found is None:
            return None
        inputs = [self._shelf.ready(picture) for picture in found.pictures]
        return found.recipe([name for name in inputs if name]) if all(inputs) else None

    def _find(self, key: CellKey) -> Order | None:
        """What a cell is to show; none where there is no such cell."""
        name, row_key, column_key = key
        if name not in self.tables:
            return None
        table = self.tables[name]
        row = next((row for row in table.rows if row.key == row_key), None)
        column = next((column for column in table.columns if column.head.key == column_key), None)
        return table.order(row, column) if row and column else None


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


def _joined(styles: Sequence[Wanted]) -> str:
    return " + ".join(style.title for style in styles)
