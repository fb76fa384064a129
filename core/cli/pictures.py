"""Pictures that the user names: files, or samples that need no file at all."""

from pathlib import Path

from core import images, samples
from core.images import Picture

_SAMPLE = "sample:"


def read(named: Path, max_megapixels: int | None = None) -> Picture:
    """The picture in a file, or the one called by e.g. `sample:chelsea`.

    Args:
        named: A path, or `sample:` and a sample's name.
        max_megapixels: The limit of the user's, in pixels; None: the default.

    Raises:
        UserError: It can't be read, or there is no such sample.
    """
    name = str(named)
    if name.startswith(_SAMPLE):
        return Picture(samples.load(name.removeprefix(_SAMPLE)), None, "sample", (), None)
    return images.read(named, max_pixels=images.DEFAULT_MAX_PIXELS if max_megapixels is None else max_megapixels)
