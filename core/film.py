"""A film of how a picture forms: MP4 where PyAV is installed, else an animated WebP or GIF.

All frames have one size, that of the result or as much of it as fits: earlier stages are enlarged to it. Frames leave
memory at once, into the encoder or into a temporary folder, so that a long film of a large picture needs no more of it
than a short one. The last frame is held for a while.
"""

import contextlib
import importlib.util
import os
import secrets
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from PIL import Image
from torch import Tensor

from core.errors import UserError
from core.images import Size, quantize, resize

FRAMES_PER_SECOND = 12
LAST_FRAME_SECONDS = 2.0
LONGEST = {".mp4": 1280, ".webp": 640, ".gif": 480}
"""The formats, by their suffix, and the longer side that a film of each has at most, unless told otherwise."""


class FilmError(UserError):
    """A film that can't be made or written."""


def check(path: Path) -> None:
    """Makes sure that a film can be made in the format that the path's suffix names.

    Raises:
        FilmError: No such format, or the package that it takes is not installed.
    """
    if path.suffix.lower() not in LONGEST:
        raise FilmError(f"{path} doesn't say what film it is to be", f"End its name in {', '.join(LONGEST)}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        raise FilmError(
            "a film as MP4 takes PyAV, which is not installed",
            "Install it with: pip install 'pyramid-style[film]', or end the film's name in .webp",
        )


class Film:
    """A film that is written frame by frame; used as `with Film(…) as film: film.add(picture)`.

    At its end it is moved into place whole, also where the run was interrupted; a film without frames leaves no file.

    Args:
        path: Where to, ending in .mp4, .webp or .gif.
        size: Height and width of the finished picture.
        longest: Most pixels along a frame's longer side; None: what suits the format (`LONGEST`).

    Raises:
        FilmError: The format is unknown, its package isn't installed, or the folder can't be written.
    """

    def __init__(self, path: Path, size: Size, *, longest: int | None = None) -> None:
        check(path)
        self._path = path.resolve()
        suffix = path.suffix.lower()
        self.size = frame_size(size, longest or LONGEST[suffix])
        self._partial = self._path.with_name(f".{secrets.token_hex(8)}{suffix}")
        self._last: Image.Image | None = None
        with _explaining(self._path):
            self._partial.touch()  # a folder that can't be written is told now, not at the end
            self._reel: _Reel = _Mp4(self._partial, self.size) if suffix == ".mp4" else _Animation(self._partial)

    def add(self, picture: Tensor) -> None:
        """Adds a frame: a picture [1, 3, H, W] in [0, 1] of any size."""
        smaller = quantize(resize(picture, self.size))[0].permute(1, 2, 0)
        self._last = Image.fromarray((smaller * 255).round().byte().cpu().numpy())
        with _explaining(self._path):
            self._reel.add(self._last)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with _explaining(self._path):
                if self._last is not None:
                    self._reel.finish(self._last)
                    self._partial.replace(self._path)
        finally:
            self._reel.close()
            self._partial.unlink(missing_ok=True)


def frame_size(size: Size, longest: int) -> Size:
    """The largest size of the shape of `size`, not larger than it, with even sides of `longest` pixels at most."""
    scale = min(1.0, longest / max(size))
    height, width = (max(2, int(side * scale) // 2 * 2) for side in size)
    return height, width


class _Reel(Protocol):
    """Takes frames of one size."""

    def add(self, frame: Image.Image) -> None:
        """Takes the next."""

    def finish(self, last: Image.Image) -> None:
        """Holds the last frame, and writes the file whole."""

    def close(self) -> None:
        """Lets go of everything; called at any moment, once."""


class _Mp4:
    """H.264 in MP4, as browsers, phones and chats play it."""

    def __init__(self, path: Path, size: Size) -> None:
        import av  # noqa: PLC0415  (an optional package)

        self._av: Any = av
        self._container: Any = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream: Any = self._container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND))
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "18", "preset": "medium"}
        # Without these tags, players guess, and HD and smaller films would differ in their reds and greens.
        self._stream.codec_context.colorspace = 1
        self._stream.codec_context.color_primaries = 1
        self._stream.codec_context.color_trc = 13
        self._stream.codec_context.color_range = 1

    def add(self, frame: Image.Image) -> None:
        picture = self._av.VideoFrame.from_image(frame)
        self._write(picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"))

    def _write(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def finish(self, last: Image.Image) -> None:
        for _ in range(round(LAST_FRAME_SECONDS * FRAMES_PER_SECOND)):
            self.add(last)
        self._write(None)
        self._container.close()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._container.close()


class _Animation:
    """What Pillow writes in one go at the end: until then the frames lie in a temporary folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = tempfile.TemporaryDirectory(prefix="pyramid-style-film-")
        self._count = 0

    def add(self, frame: Image.Image) -> None:
        frame.save(self._frame_path(self._count), compress_level=1)
        self._count += 1

    def _frame_path(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number:06d}.png"

    def finish(self, last: Image.Image) -> None:
        each = round(1000 / FRAMES_PER_SECOND)
        durations = [each] * (self._count - 1) + [round(1000 * LAST_FRAME_SECONDS)]
        others = self._frames()
        first = next(others)
        options: dict[str, Any] = {"quality": 80, "method": 3} if self._path.suffix == ".webp" else {}
        first.save(self._path, save_all=True, append_images=others, duration=durations, loop=0, **options)

    def _frames(self) -> Iterator[Image.Image]:
        for number in range(self._count):
            with Image.open(self._frame_path(number)) as frame:
                yield frame.convert("RGB")

    def close(self) -> None:
        self._folder.cleanup()


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """What the operating system says, as an error of the user's; PyAV's errors are its errors too."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise FilmError(f"the film {path.name} can't be written ({reason})", "Choose another place for it") from error
