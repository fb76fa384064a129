"""The task that fills the tables by itself.

Each cell is a short chain of jobs: one at level 0, so that there soon is something to see everywhere, then one at the
table's level. By their keys nothing is computed twice, however often the lab is started; what is missing is found by
looking again, so that nothing is lost either.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator

from core.errors import UserError
from core.studio import Studio
from core.studio.jobs import QueueFullError
from ui.lab.board import LAB_OWNER, TABLE_OWNER, Board
from ui.lab.shelf import Shelf
from ui.lab.tables import Column, Head, Table

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
_MOST_PENDING = 500


class Filler:
    """Asks for whatever the board lacks.

    Args:
        board: Whose tables are filled.
        shelf: Whose pictures they show.
        studio: Is asked.
    """

    def __init__(self, board: Board, shelf: Shelf, studio: Studio) -> None:
        self._board = board
        self._shelf = shelf
        self._studio = studio
        self._asked: set[str] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Fills until the end of the block."""
        task = asyncio.create_task(self._fill())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _fill(self) -> None:
        while True:
            try:
                await self._shelf.look()
                self._board.arrange()
                await self._drop_outdated()
                await self._ask_for_missing()
                await self._get_everything_ready()
            except UserError as error:
                log.error("the tables can't be filled: %s", error)
            except Exception:
                log.exception("the tables could not be filled")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._board.wanting.wait(), _LOOK_SECONDS)
            self._board.wanting.clear()

    async def _drop_outdated(self) -> None:
        """Drops what the lab began by itself and no table wants any more, because its settings or pictures changed."""
        for job in self._board.outdated():
            self._asked.discard(job.key or "")  # it may be wanted again one day
            await self._studio.delete(job.id)

    async def _ask_for_missing(self) -> None:
        """Asks for every missing job; where the queue is full, the rest comes when this is called again."""
        try:
            for table in self._board.new_tables():
                for row, column in _cells(table):
                    await self._ask(table, row, column, table.level)
                await self._board.asked_for_all(table)
            for table, row, column, level in self._missing():
                await self._ask(table, row, column, level)
        except QueueFullError as error:
            log.info("%s", error)

    def _missing(self) -> Iterator[tuple[Table, Head, Column, int]]:
        """Every cell's first picture, then every cell's picture at its table's level."""
        tables = [table for table in self._board.tables.values() if not table.own]
        for table in tables:
            yield from ((table, *cell, 0) for cell in _cells(table))
        for table in tables:
            yield from ((table, *cell, table.level) for cell in _cells(table) if table.level)

    async def _get_everything_ready(self) -> None:
        """So that all pictures can be chosen by sight."""
        for key in self._shelf.pictures:
            with contextlib.suppress(UserError):  # a broken file; its cells say so
                await self._shelf.get(key)

    async def _ask(self, table: Table, row: Head, column: Column, level: int) -> None:
        """Submits a cell's job, once.

        Raises:
            QueueFullError: Not now.
        """
        key = (table.name, row.key, column.head.key)
        try:
            order = table.order(row, column)
            content, *styles = [await self._shelf.get(picture) for picture in order.pictures]
            recipe = order.recipe([content, *styles])
            name = "/".join((*key, recipe, str(level)))
            if name in self._asked or self._board.has(key, name):
                return
            tags = {
                "table": table.name,
                "row": row.key,
                "column": column.head.key,
                "recipe": recipe,
                "content_title": row.title,
                "style_title": order.title,
            }
            owner = LAB_OWNER if table.own else TABLE_OWNER
            await self._studio.submit(
                owner,
                content,
                styles,
                order.settings.changed({"levels": level}),
                masks=order.masks,
                protect=order.protect,
                key=name,
                tags=tags,
                pending=_MOST_PENDING,
            )
            self._asked.add(name)
        except QueueFullError:
            raise
        except UserError as error:
            self._board.tell_problem(key, error)


def _cells(table: Table) -> Iterator[tuple[Head, Column]]:
    """Column by column, so that a style that has been painted is used before the next is."""
    for column in table.columns:
        for row in table.rows:
            yield row, column
