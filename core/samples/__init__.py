"""Pictures to begin with: styles that the project paints itself, and sample photographs.

Nothing is downloaded. The styles are painted on the spot, at any size, from a seed; the photographs lie in
scikit-image's own package. Importing this module is cheap: the painters, and what they need, are imported when used.
"""

import difflib
import importlib.resources
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from core.samples.canvas import Array, Canvas

DEFAULT_SIDE = 1024
"""Height and width, in px, of a style whose size isn't asked for."""

_MIN_SIDE, _MAX_SIDE, _MAX_ASPECT = 16, 3072, 4
_FINEST_SIDE = 1024
"""A smaller picture is painted with at least this shorter side and averaged down: marks are finer than its pixels."""


@dataclass(frozen=True)
class Sample:
    """A picture that is always at hand.

    Attributes:
        name: What to ask for it by.
        title: What to call it on a page.
        kind: Whether it is painted or read.
        description: What it shows and how it is made, as a sentence without its full stop.
        credit: Whose it is, and on what terms it may be used.
    """

    name: str
    title: str
    kind: Literal["style", "photograph"]
    description: str
    credit: str


_OWN = "Painted by this program; free for any use"

_STYLES = tuple(
    Sample(name, title, "style", description, _OWN)
    for name, title, description in (
        ("swirls", "Swirls", "Stars and wind over fields, in oil strokes along a curl-noise field"),
        ("mosaic", "Mosaic", "Flowers on water, in nearly square Voronoi tiles of coloured glass"),
        ("points", "Points", "A lake at sunset, in dabs of pure colour for the eye to mix"),
        ("hatching", "Hatching", "Hills behind hills, in crossing lines of ink over a watercolour wash"),
        ("glass", "Stained glass", "The sun and its rings over land and water, in a leaded window"),
        ("cutouts", "Cut-outs", "Leaves, flowers and stars, cut from sheets brushed with gouache"),
        ("waves", "Waves", "Breakers before a red sun, in the manner of a colour woodblock print"),
        ("lilies", "Lilies", "A pond with water lilies, in an impasto of upright and level strokes"),
    )
)

_PHOTOGRAPHS = tuple(
    Sample(name, title, "photograph", description, credit)
    for name, title, description, credit in (
        ("astronaut", "Astronaut", "Portrait of the astronaut Eileen Collins", "NASA; public domain"),
        ("chelsea", "Chelsea", "Portrait of a cat", "Stéfan van der Walt; CC0"),
        ("coffee", "Coffee", "A cup of coffee on a wooden table", "Rachel Michetti, Pikolo Espresso Bar; CC0"),
        ("rocket", "Rocket", "A Falcon 9 leaves Cape Canaveral with DSCOVR on board", "SpaceX; public domain"),
    )
)
_FILES = {"astronaut": "astronaut.png", "chelsea": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}


def styles() -> tuple[Sample, ...]:
    """The styles that can be painted."""
    return _STYLES


def photographs() -> tuple[Sample, ...]:
    """The photographs that can be read."""
    return _PHOTOGRAPHS


def load(name: str, height: int = DEFAULT_SIDE, width: int = DEFAULT_SIDE, *, seed: int = 0) -> "Tensor":
    """A style, painted, or a photograph, read, by its name; size and seed concern styles only.

    Returns:
        float32 [1, 3, H, W], sRGB in [0, 1].

    Raises:
        SettingsError: No sample has this name, or a style can't be painted at this size or from this seed.
    """
    known = _STYLES + _PHOTOGRAPHS
    sample = _find(name, known, "sample")
    return paint(name, height, width, seed=seed) if sample.kind == "style" else photograph(name)


def paint(name: str, height: int, width: int, *, seed: int = 0) -> "Tensor":
    """Paints a style.

    A seed gives the same picture at every size of one shape: places and sizes of its marks are relative to the shorter
    side.

    Args:
        name: One of `styles()`.
        height: In pixels.
        width: In pixels.
        seed: Another number paints another picture in the same manner; at least 0.

    Returns:
        float32 [1, 3, height, width], sRGB in [0, 1].

    Raises:
        SettingsError: No style has this name, the size is out of bounds or too long, or the seed is negative.
    """
    _find(name, _STYLES, "style")
    _check(height, width, seed)
    import torch  # noqa: PLC0415

    from core.samples.canvas import Canvas  # noqa: PLC0415

    scale = math.ceil(_FINEST_SIDE / min(height, width))
    picture = _painters()[name](Canvas(height * scale, width * scale, seed))
    averaged = picture.reshape(height, scale, width, scale, 3).mean((1, 3))
    return torch.from_numpy(averaged).permute(2, 0, 1)[None].contiguous()


def photograph(name: str) -> "Tensor":
    """Reads a photograph from scikit-image's installed package, and from nowhere else.

    `skimage.data` itself would fall back on a download.

    Args:
        name: One of `photographs()`.

    Returns:
        float32 [1, 3, H, W], sRGB in [0, 1].

    Raises:
        SettingsError: No photograph has this name.
        ImageError: The installed scikit-image comes without its pictures.
    """
    _find(name, _PHOTOGRAPHS, "photograph")
    from core import images  # noqa: PLC0415

    bundled = importlib.resources.files("skimage") / "data" / _FILES[name]
    with importlib.resources.as_file(bundled) as path:
        return images.read(path).pixels


def _painters() -> dict[str, "Callable[[Canvas], Array]"]:
    from core.samples import brush, paper, prints, tiles  # noqa: PLC0415

    return {
        "swirls": brush.swirls,
        "mosaic": tiles.mosaic,
        "points": brush.points,
        "hatching": prints.hatching,
        "glass": tiles.glass,
        "cutouts": paper.cutouts,
        "waves": prints.waves,
        "lilies": brush.lilies,
    }


def _find(name: str, samples: tuple[Sample, ...], kind: str) -> Sample:
    known = {sample.name: sample for sample in samples}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    remedy = f"Did you mean '{close[0]}'?" if close else f"Known are: {', '.join(known)}"
    raise SettingsError(f"There is no {kind} called '{name}'", remedy)


def _check(height: int, width: int, seed: int) -> None:
    size = f"{width} × {height}"
    if not _MIN_SIDE <= min(height, width) <= max(height, width) <= _MAX_SIDE:
        raise SettingsError(
            f"A style can't be painted at {size}", f"Ask for sides from {_MIN_SIDE} to {_MAX_SIDE} pixels"
        )
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise SettingsError(f"A style can't be painted at {size}", f"Ask for a shape no longer than {_MAX_ASPECT}:1")
    if seed < 0:
        raise SettingsError(f"The seed is {seed}", "Use 0 or a positive number")
