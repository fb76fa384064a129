"""The pictures of the story: contact sheets of every pair, and what `docs/method.md` shows of the first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.figures.coverage import Coverage
from benchmarks.figures.pictures import Kept, Pair, read
from benchmarks.figures.sheets import Cell, crop, noise_map, save, sheet
from benchmarks.figures.stages import NOISY, TOLD, Stage, stage

_DETAIL = (200, 300)
"""Height and width of a piece shown pixel by pixel."""


class Story:
    """The pictures of one pair at one L, of the first seed.

    Args:
        kept: Makes the pictures.
        pair: Content and style.
        levels: L.
    """

    def __init__(self, kept: Kept, pair: Pair, levels: int) -> None:
        self._kept, self._pair, self._levels = kept, pair, levels
        self._content, self._style = read(pair.content), read(pair.style)

    def picture(self, told: Stage, levels: int | None = None) -> Tensor:
        """The picture of a stage, at this L or another."""
        return self._kept.picture(self._pair, told, self._levels if levels is None else levels, 0)

    def contact_sheet(self, path: Path) -> None:
        """Everything on one page: content and style, the stages, the noise that they begin with."""
        given = [Cell(self._content, "content"), Cell(self._style, "style")]
        made = [Cell(self.picture(told), told.title) for told in TOLD]
        noises = [Cell(self._noise(name), f"noise of {stage(name).title.lower()}") for name in NOISY]
        cells = [*given, *made, *noises]
        save(path, sheet([cells[first : first + 4] for first in range(0, len(cells), 4)], width=330))

    def _noise(self, name: str) -> Tensor:
        return noise_map(self._kept.settings(stage(name), self._levels, 0), self._content, self._style)

    def _start(self, name: str) -> Tensor:
        return self._kept.transfer(self._pair, self._kept.settings(stage(name), self._levels, 0)).starting_picture

    def given(self, path: Path) -> None:
        """Content, style and the two ends of the story."""
        ends = [Cell(self.picture(stage(name)), stage(name).title) for name in ("classical", "final")]
        save(path, sheet([[Cell(self._content, "Content"), Cell(self._style, "Style")], ends], width=560))

    def noises(self, path: Path) -> None:
        """The noise of every stage, and the starting picture that it makes."""
        maps = [Cell(self._noise(name), stage(name).title) for name in NOISY]
        starts = [Cell(self._start(name), "start") for name in NOISY]
        save(path, sheet([maps, starts], width=300))

    def stages(self, path: Path) -> None:
        """All stages."""
        cells = [Cell(self.picture(told), told.title) for told in TOLD]
        save(path, sheet([cells[:2], cells[2:4], cells[4:6], cells[6:]], width=560))

    def details(self, path: Path) -> None:
        """Two pieces of the picture, pixel by pixel: away from the centre, and in it."""
        shown = [stage(name) for name in ("classical", "pixel-noise", "style-noise", "final")]
        rows = [
            [Cell(crop(self.picture(told), where, _DETAIL), told.title) for told in shown]
            for where in ((0.25, 0.25), (0.5, 0.5))
        ]
        save(path, sheet(rows, width=2 * _DETAIL[1] // 2))

    def across(self, path: Path, finest: int) -> None:
        """The final picture at every L: the whole, and a piece of it pixel by pixel."""
        pictures = [self.picture(stage("final"), levels) for levels in range(finest + 1)]
        wholes = [Cell(picture, f"L = {levels}") for levels, picture in enumerate(pictures)]
        pieces = [Cell(crop(picture, (0.5, 0.5), _DETAIL), "pixel by pixel") for picture in pictures]
        save(path, sheet([wholes, pieces], width=_DETAIL[1]))

    def figures_across(self, finest: int) -> list[dict[str, Any]]:
        """How well the final picture of every L matches each level of the finest pyramid."""
        judge = Coverage(self._kept.network, self._kept.weights_file, self._content, self._style, finest)
        entries = []
        for levels in range(finest + 1):
            picture = self.picture(stage("final"), levels)
            height, width = picture.shape[2:]
            distances = [float(f"{value:.4g}") for value in judge.measure(picture)]
            entries.append({"levels": levels, "width": width, "height": height, "style_distance": distances})
        return entries


def others(kept: Kept, pairs: Sequence[Pair], levels: int, path: Path) -> None:
    """A row for each pair: the content, and three stages."""
    rows = []
    for pair in pairs:
        shown = [stage(name) for name in ("classical", "pixel-noise", "final")]
        cells = [Cell(kept.picture(pair, told, levels, 0), f"{pair.title}: {told.title.lower()}") for told in shown]
        rows.append([Cell(read(pair.content), pair.title), *cells])
    save(path, sheet(rows, width=360, height=240))
