"""`stylize` with `--sweep` or `--interpolate`: a sheet of small pictures to choose from, and each of them as a file."""

import json
import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from core import images
from core.cli import files
from core.cli.arguments import program
from core.cli.display import Display
from core.cli.interruption import INTERRUPTED, Interruption
from core.cli.sheet import contact_sheet
from core.sweep import Cell
from core.transfer import Step, Transfer

Grid = Sequence[Sequence[Cell]]


def run(
    arguments: Namespace,
    grid: Grid,
    transfer: Transfer,
    display: Display,
    interruption: Interruption,
    encode: Callable[[Transfer, Step], bytes],
) -> int:
    """Paints every cell and writes the sheet; an interruption ends it with what there is. Returns the exit code.

    Args:
        arguments: Of `stylize`.
        grid: The cells, row by row.
        transfer: The run of the first cell, whose statistics the others share where they can.
        display: Shows how far it is.
        interruption: Says when to stop.
        encode: Makes a picture's file.
    """
    folder = arguments.output.with_suffix("")
    files.make_folder(folder)
    painter = _Painter(transfer, display, interruption)
    pictures: dict[tuple[int, int], Tensor] = {}
    cells = [cell for row in grid for cell in row]
    for number, cell in enumerate(cells, 1):
        run, step = painter.paint(cell, f"{number} of {len(cells)}: {cell.label}")
        if step is None:
            break
        pictures[cell.row, cell.column] = step.picture()
        images.write_bytes(_path(folder, cell, arguments.output), encode(run, step))
    if pictures:
        sheet = contact_sheet([[(cell.label, pictures.get((cell.row, cell.column))) for cell in row] for row in grid])
        images.save(arguments.output, sheet)
        _report(arguments, folder, [cell for cell in cells if (cell.row, cell.column) in pictures])
    return INTERRUPTED if interruption.asked else 0


class _Painter:
    def __init__(self, transfer: Transfer, display: Display, interruption: Interruption) -> None:
        self._transfer = transfer
        self._display = display
        self._interruption = interruption

    def paint(self, cell: Cell, what: str) -> tuple[Transfer, Step | None]:
        """The run of a cell and its last step; none where it was interrupted."""
        self._display.phase(what)
        self._display.note(what)
        self._display.follow(cell.settings)
        run = self._transfer if cell.settings == self._transfer.settings else self._transfer.varied(cell.settings)
        self._interruption.patient = True
        step = None
        for step in run.steps():
            if self._interruption.asked:
                return run, None
            self._display.show(step)
        self._transfer = run  # its neighbours differ least from it
        return run, step


def _path(folder: Path, cell: Cell, output: Path) -> Path:
    return folder / f"r{cell.row + 1}c{cell.column + 1}{output.suffix}"


def _report(arguments: Namespace, folder: Path, cells: Sequence[Cell]) -> None:
    names = {cell: _path(folder, cell, arguments.output) for cell in cells}
    if arguments.json:
        listed = [{"label": cell.label, "output": str(path)} for cell, path in names.items()]
        print(json.dumps({"output": str(arguments.output), "cells": listed}))
    elif not arguments.quiet:
        pictures = [str(arguments.content), *(str(style) for style in arguments.styles)]
        again = [*pictures, "-o", "large.png", "--recipe", str(names[cells[-1]]), "--levels", "2"]
        print(f"{arguments.output}: {len(cells)} pictures, each also in {folder}")
        print(f"to make one of them large: {program()} stylize {shlex.join(again)}")
