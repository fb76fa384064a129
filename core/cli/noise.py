"""The command `noise`: the structured noise as a picture, alone or over a photograph."""

from argparse import Namespace

import torch

from core import __version__, colours, images, noise
from core.cli import files, pictures
from core.config import Settings
from core.errors import ImageError
from core.images import MAX_ASPECT, MIN_SIDE, Picture, Size
from core.pyramid import level_size


def run(arguments: Namespace, settings: Settings) -> int:
    """Writes the picture and returns the exit code.

    Over a photograph and without a size, it is the starting picture of a run with these settings.

    Raises:
        UserError: A picture that can't be read, a size that can't be made, an output that can't be written.
    """
    inputs = [path for path in (arguments.style, arguments.content) if path is not None]
    format = images.writable_format(arguments.output)
    files.check_writable(arguments.output, inputs)
    limit = images.DEFAULT_MAX_PIXELS if arguments.max_megapixels is None else arguments.max_megapixels
    style = pictures.read(arguments.style, limit)
    content = None if arguments.content is None else pictures.read(arguments.content, limit)
    size = _size(arguments.size, content, settings, limit)
    picture = _picture(settings, size, style, content)
    height, width = size
    recipe = {
        "version": __version__,
        "settings": settings.model_dump(mode="json"),
        "seed": settings.seed,
        "sizes": {"result": [width, height]},
    }
    images.write_bytes(arguments.output, images.encode(picture, format, recipe=recipe))
    print(f"{arguments.output}: {width} × {height}")
    return 0


def _size(asked: Size | None, content: Picture | None, settings: Settings, limit: int) -> Size:
    """Height and width."""
    if asked is None:
        assert content is not None, "the arguments give one of both"
        return level_size((content.pixels.shape[2], content.pixels.shape[3]), settings.levels)
    if min(asked) < MIN_SIDE or max(asked) > MAX_ASPECT * min(asked) or asked[0] * asked[1] > limit:
        cause = f"a picture of {asked[1]} × {asked[0]} cannot be made"
        span = f"at least {MIN_SIDE} × {MIN_SIDE}, at most {limit / 1e6:g} megapixels, not longer than {MAX_ASPECT}:1"
        raise ImageError(cause, f"Choose a size of {span}")
    return asked


def _picture(settings: Settings, size: Size, style: Picture, content: Picture | None) -> torch.Tensor:
    """[1, 3, *size] in [0, 1]."""
    generator = torch.Generator().manual_seed(settings.seed)
    if content is None:
        return noise.noise_alone(settings.noise, size, style.pixels, generator)
    seen = colours.prepare(settings.colour, content.pixels, [style.pixels])
    return noise.blend(settings.noise, images.resize(seen.content, size).clamp(0, 1), seen.styles[0], generator)
