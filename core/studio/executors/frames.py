"""The frames of a film, gathered while a picture forms: evenly spread, never more than so many, and kept over restarts.

A frame is a small JPEG file, the same that a preview is. When there are too many, every second one is left out and from
then on half as many are taken, so that a film of ten thousand iterations is as long as one of a hundred.
"""

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

MOST_FRAMES = 240

_NAME = re.compile(r"(\d{9})\.jpeg")


class Frames:
    """The frames so far, by iteration.

    Args:
        most: How many to keep at most.
    """

    def __init__(self, most: int = MOST_FRAMES) -> None:
        self._most = most
        self._every = 1
        self._frames: dict[int, bytes] = {}

    @property
    def pictures(self) -> Sequence[bytes]:
        """In their order."""
        return list(self._frames.values())

    def offer(self, iteration: int, picture: Callable[[], bytes]) -> None:
        """Takes the picture of an iteration, if it is one of those that are taken.

        Args:
            iteration: Over all stages; what was taken of it or of later ones, before a restart, is forgotten.
            picture: Makes the JPEG file.
        """
        self._frames = {known: frame for known, frame in self._frames.items() if known < iteration}
        if iteration % self._every:
            return
        self._frames[iteration] = picture()
        while len(self._frames) > self._most:
            self._every *= 2
            self._frames = {known: frame for known, frame in self._frames.items() if known % self._every == 0}

    def encode(self) -> bytes:
        """All of it as a file."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for iteration, frame in self._frames.items():
                archive.writestr(f"{iteration:09d}.jpeg", frame)
        return stream.getvalue()

    def restore(self, path: Path) -> None:
        """Goes on with what `encode` wrote; a file that isn't there, or is damaged, means a shorter film."""
        try:
            with zipfile.ZipFile(path) as archive:
                found = {
                    int(match[1]): archive.read(match[0])
                    for name in archive.namelist()
                    if (match := _NAME.fullmatch(name))
                }
        except (OSError, zipfile.BadZipFile):
            return
        self._frames = dict(sorted(found.items()))
        iterations = list(self._frames)
        self._every = max(1, iterations[1] - iterations[0]) if len(iterations) > 1 else 1
