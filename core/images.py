"""Bytes ⇄ RGB tensors: the only room that knows file formats, colour profiles, limits and resizing.

Reading:  bytes ─ which format? ─ header within the limits? ─ decode ─ turn upright ─ convert to sRGB ─ `Picture`
Writing:  pixels ─ round to 8 or 16 bits ─ encode with an sRGB profile and the recipe ─ bytes

Sizes are judged from the header before a pixel is allocated. Of a picture's metadata only the orientation, the colour
profile and the recipe are looked at, and none is passed on.
"""

import errno
import io
import json
import math
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from core._colour import srgb_profile, to_srgb
from core._files import MAX_RECIPE_BYTES, RECIPE_KEY, File, Header, Source, decode, header, load, readable, stored_text
from core.errors import ImageError, RecipeError

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "Formats",
    "Header",
    "Picture",
    "Size",
    "Source",
    "encode",
    "formats",
    "probe",
    "quantize",
    "read",
    "read_mask",
    "read_recipe",
    "resize",
    "save",
    "writable_format",
]

Size = tuple[int, int]
"""Height, then width, in pixels."""

DEFAULT_MAX_PIXELS = 100_000_000
MAX_ASPECT = 20
MIN_SIDE = 8
SOFTWARE = "pyramid-style"


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the rest of `core` wants it.

    Attributes:
        pixels: float32 [1, 3, H, W], sRGB in [0, 1].
        alpha: float32 [1, 1, H, W] in [0, 1] (1 = opaque), or None when all of it is opaque.
        format: Pillow's name for the format it came in, such as "JPEG".
        notices: What its owner may like to know, each a sentence without its full stop.
        recipe: How this project made it, if it did and the file still says so.
    """

    pixels: Tensor
    alpha: Tensor | None
    format: str
    notices: tuple[str, ...]
    recipe: dict[str, Any] | None


class Formats(NamedTuple):
    """Pillow's names of the formats that can be read and written on this machine."""

    read: tuple[str, ...]
    write: tuple[str, ...]


def formats() -> Formats:
    """What can be read and written here; HEIC (Pillow says "HEIF") is read only where pillow-heif is installed."""
    return Formats(readable(), tuple(name.upper() for name in _WRITERS))


# ── Resizing and rounding ────────────────────────────────────────────────────────────────────────────────────────────


def resize(pixels: Tensor, size: Size) -> Tensor:
    """Bicubic resampling, antialiased where it shrinks; differentiable.

    Args:
        pixels: [N, C, H, W]. Pixels are squares: corners coincide, centres lie half a pixel inside.
        size: New height and width.

    Returns:
        [N, C, *size], the pixels themselves if the size is theirs. Not clamped: bicubic overshoots at sharp edges.
    """
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)


def quantize(pixels: Tensor, bits: int = 8) -> Tensor:
    """The picture exactly as a lossless file will hold it: clamped to [0, 1] and rounded to the nearest step.

    Args:
        pixels: Values of any shape.
        bits: Bits per channel, 8 or 16.

    Returns:
        float32 on the same device, detached; equal, bit for bit, to what `read` returns for the written file.
    """
    steps = _steps(pixels, bits)
    return steps / torch.full_like(steps, 2**bits - 1)  # by a plain number, CUDA would multiply with its reciprocal


def _steps(pixels: Tensor, bits: int) -> Tensor:
    if bits not in (8, 16):
        raise ValueError(f"bits is {bits}; it must be 8 or 16")
    return (pixels.detach().float().clamp(0, 1) * float(2**bits - 1)).round()


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Picture:
    """Reads JPEG, PNG, WebP, TIFF, GIF, BMP and, with pillow-heif, HEIC.

    The picture comes upright (EXIF), in sRGB (from its colour profile), with the precision of its file (up to float32).
    Of an animation, the first frame is read. Where a picture is fully transparent, its colours mean nothing (black,
    usually) but would enter the style's statistics; there they become the mean colour of what is visible. Elsewhere
    the colours stay as they are, not blended, since the alpha channel will be laid over the result again.

    Args:
        source: The file's bytes or its path.
        max_pixels: Most pixels that the picture may have; checked before it is decoded.

    Raises:
        ImageError: Not an image, damaged, no pixels, too many, too small, or longer than 20:1.
    """
    file = load(source)
    head = _checked_header(file, max_pixels)
    samples, opacity, icc = decode(file)
    colours, doubt = to_srgb(samples, icc)
    pixels = _to_tensor(colours)
    alpha = None if opacity is None or opacity.min() == 1 else _to_tensor(opacity[..., None])
    return Picture(
        pixels=pixels if alpha is None else _fill_invisible(pixels, alpha),
        alpha=alpha,
        format=file.format,
        notices=(*_frame_notices(head), *([doubt] if doubt else [])),
        recipe=_recipe_or_none(file),
    )


def read_mask(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tensor:
    """Reads a picture as a mask: white is inside, black and transparent outside, greys in between.

    Args:
        source: The file's bytes or its path.
        max_pixels: As for `read`.

    Returns:
        float32 [1, 1, H, W] in [0, 1].

    Raises:
        ImageError: As `read`.
    """
    picture = read(source, max_pixels=max_pixels)
    grey = picture.pixels.mean(1, keepdim=True)
    return grey if picture.alpha is None else grey * picture.alpha


def probe(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Reads the header alone and holds it against the same limits as `read`; nothing is decoded.

    Raises:
        ImageError: Not an image, a damaged header, no pixels, too many, too small, or longer than 20:1.
    """
    return _checked_header(load(source), max_pixels)


def _checked_header(file: File, max_pixels: int) -> Header:
    head = header(file)
    size = f"{head.width} × {head.height}"
    pixels = head.height * head.width
    if not pixels:
        raise ImageError(f"{file.name} has no pixels ({size})", "Export it anew from the program that made it")
    if pixels > max_pixels:
        shrink = math.sqrt(max_pixels / pixels)
        cause = f"{file.name} is {size}, or {pixels / 1e6:.1f} megapixels; the limit is {max_pixels / 1e6:g}"
        fitting = f"{int(head.width * shrink)} × {int(head.height * shrink)}"
        raise ImageError(cause, f"Scale it down to at most {fitting}, or raise the limit")
    if min(head.height, head.width) < MIN_SIDE:
        raise ImageError(f"{file.name} is only {size} pixels", f"Use a picture of at least {MIN_SIDE} × {MIN_SIDE}")
    if max(head.height, head.width) > MAX_ASPECT * min(head.height, head.width):
        raise ImageError(f"{file.name} is {size}, longer than {MAX_ASPECT}:1", "Crop it to a less extreme shape")
    return head


def _frame_notices(head: Header) -> list[str]:
    kind = {"TIFF": "several pages", "HEIF": "several pictures"}.get(head.format, "animated")
    part = {"TIFF": "page", "HEIF": "picture"}.get(head.format, "frame")
    return [f"{kind}: only the first of {head.frames} {part}s is used"] if head.frames > 1 else []


def _to_tensor(channels: NDArray[np.float32]) -> Tensor:
    """[H, W, C] → [1, C, H, W], in memory of its own."""
    return torch.from_numpy(channels.transpose(2, 0, 1).copy())[None]


def _fill_invisible(pixels: Tensor, alpha: Tensor) -> Tensor:
    visible = alpha.sum()
    if not visible:
        return pixels
    mean = (pixels * alpha).sum((2, 3), keepdim=True) / visible
    return torch.where(alpha > 0, pixels, mean)


# ── The recipe: a JSON object inside the file ────────────────────────────────────────────────────────────────────────


def read_recipe(source: Source) -> dict[str, Any]:
    """The recipe that a written picture carries; the picture itself is not decoded.

    It is a JSON object, of a sane size, that names this project as its software; what it asks for must still be
    validated like any other settings.

    Raises:
        ImageError: Not an image of a known kind.
        RecipeError: No recipe, or a damaged one.
    """
    return _recipe_of(load(source))


def _recipe_of(file: File) -> dict[str, Any]:
    text = stored_text(file)
    if text is None or f'"{SOFTWARE}"' not in text:
        remedy = "Use the file that was written here: editors, chats and web sites strip it away"
        raise RecipeError(f"{file.name} carries no recipe", remedy)
    try:
        if len(text) > MAX_RECIPE_BYTES:
            raise ValueError("too long")
        recipe = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(recipe, dict) or recipe.get("software") != SOFTWARE:
            raise ValueError("not one of ours")
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{file.name} carries a damaged recipe", "Use the file as it was written") from error
    return recipe


def _recipe_or_none(file: File) -> dict[str, Any] | None:
    try:
        return _recipe_of(file)
    except RecipeError:
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _recipe_text(recipe: Mapping[str, Any]) -> str:
    """ASCII JSON.

    Raises:
        TypeError: Something in it is not JSON: a caller's mistake, not a user's.
        RecipeError: It is longer than what `read_recipe` accepts.
    """
    try:
        text = json.dumps({**recipe, "software": SOFTWARE}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a recipe must be made of finite numbers, text, lists and objects: {error}") from error
    _check_length(text, MAX_RECIPE_BYTES, "a picture")
    return text


def _check_length(text: str, limit: int, holder: str) -> None:
    if len(text) > limit:
        cause = f"The recipe has {len(text)} bytes; {holder} holds at most {limit}"
        raise RecipeError(cause, "Write a PNG, or use shorter settings")


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_Integers = NDArray[np.unsignedinteger[Any]]
"""[H, W, C], uint8 or uint16; C = 3, or 4 with alpha."""


def encode(
    pixels: Tensor,
    format: str = "png",
    *,
    bits: int = 8,
    alpha: Tensor | None = None,
    recipe: Mapping[str, Any] | None = None,
    quality: int = 95,
) -> bytes:
    """Encodes a picture with an sRGB profile; the same input gives the same bytes.

    Args:
        pixels: [1, 3, H, W], sRGB; values are clamped to [0, 1] and rounded to nearest, without dithering.
        format: "png", "jpeg", "webp" or "tiff" (or a usual suffix of these, such as "jpg").
        bits: Bits per channel: 8, or 16 for PNG and TIFF.
        alpha: [1, 1, H, W] in [0, 1], stored unassociated. JPEG has none: there the picture is laid over white.
        recipe: JSON object to carry along: in PNG an iTXt chunk, in TIFF the description, in JPEG and WebP the EXIF
            user comment. Its key "software" is set here.
        quality: For JPEG (chroma not subsampled) and WebP, 1 to 100.

    Raises:
        ImageError: Unknown format, or one that cannot hold so many bits or pixels.
        RecipeError: The recipe is too long for the file (in JPEG, 64 KB).
        TypeError: The recipe is not JSON.
        ValueError: Shapes or bits that are not as above, or values that are not finite.
    """
    name = _format_named(format)
    writer = _WRITERS[name]
    _check_fit(name, pixels, alpha, bits)
    if alpha is not None and not writer.alpha:
        pixels, alpha = pixels * alpha + (1 - alpha), None
    channels = pixels if alpha is None else torch.cat([pixels, alpha.to(pixels)], dim=1)
    return writer.write(_integers(channels, bits), None if recipe is None else _recipe_text(recipe), quality)


def save(
    path: str | os.PathLike[str],
    pixels: Tensor,
    *,
    bits: int = 8,
    alpha: Tensor | None = None,
    recipe: Mapping[str, Any] | None = None,
    quality: int = 95,
) -> None:
    """Writes a picture in the format that the suffix names; at every moment the file is the old or the new one, whole.

    See `encode` for the arguments.

    Raises:
        ImageError: As `encode`; and an unknown suffix, a folder that is missing or may not be written, a full disk.
    """
    data = encode(pixels, writable_format(path), bits=bits, alpha=alpha, recipe=recipe, quality=quality)
    write_bytes(Path(path), data)


def writable_format(path: str | os.PathLike[str]) -> str:
    """The name, for `encode`, of the format that a path's suffix asks for.

    Raises:
        ImageError: No suffix, or one of a format that is not written here.
    """
    suffix = Path(path).suffix
    if not suffix:
        raise ImageError(f"{path} has no suffix that names a format", "End it in .png, .jpg, .webp or .tiff")
    return _format_named(suffix)


def _format_named(name: str) -> str:
    plain = name.lower().removeprefix(".")
    plain = {"jpg": "jpeg", "tif": "tiff"}.get(plain, plain)
    if plain not in _WRITERS:
        raise ImageError(f"{name} is not a format that can be written", "Choose png, jpg, webp or tiff")
    return plain


def _check_fit(name: str, pixels: Tensor, alpha: Tensor | None, bits: int) -> None:
    writer = _WRITERS[name]
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3) or not pixels.numel():
        raise ValueError(f"pixels must be [1, 3, H, W], not {list(pixels.shape)}")
    height, width = pixels.shape[2:]
    if alpha is not None and alpha.shape != (1, 1, height, width):
        raise ValueError(f"alpha must be [1, 1, {height}, {width}], not {list(alpha.shape)}")
    if not all(bool(values.isfinite().all()) for values in (pixels, alpha) if values is not None):
        raise ValueError("the picture holds values that are not finite")
    if bits == 16 and not writer.deep:
        raise ImageError(f"{name.upper()} holds 8 bits per channel, not 16", "Choose 8 bits, or PNG or TIFF")
    if max(height, width) > writer.max_side:
        cause = f"The picture is {width} × {height}; a side of a {name.upper()} has at most {writer.max_side} pixels"
        raise ImageError(cause, "Choose PNG or TIFF")


def _integers(channels: Tensor, bits: int) -> _Integers:
    rows = _steps(channels, bits)[0].permute(1, 2, 0).contiguous().cpu().numpy()
    return rows.astype(np.uint8) if bits == 8 else rows.astype(np.uint16)


def _write_png(integers: _Integers, recipe: str | None, quality: int) -> bytes:
    data = bytes(imagecodecs.png_encode(integers))
    extra = _png_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile()))
    if recipe is not None:
        extra += _png_chunk(b"iTXt", RECIPE_KEY + b"\0\0\0\0\0" + recipe.encode())
    end_of_header = 8 + 25
    return data[:end_of_header] + extra + data[end_of_header:]


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _write_tiff(integers: _Integers, recipe: str | None, quality: int) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(
        stream,
        integers,
        photometric="rgb",
        extrasamples=["unassalpha"] if integers.shape[2] == 4 else None,
        compression="zlib",
        predictor=True,
        description=recipe,
        metadata=None,
        software=SOFTWARE,
        iccprofile=srgb_profile(),
    )
    return stream.getvalue()


def _write_jpeg(integers: _Integers, recipe: str | None, quality: int) -> bytes:
    _check_length(recipe or "", 65_000, "a JPEG")
    return _write_with_pillow(integers, "JPEG", recipe, quality=quality, subsampling="4:4:4")


def _write_webp(integers: _Integers, recipe: str | None, quality: int) -> bytes:
    return _write_with_pillow(integers, "WEBP", recipe, quality=quality)


def _write_with_pillow(integers: _Integers, format: str, recipe: str | None, **options: Any) -> bytes:
    exif = Image.Exif()
    if recipe is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + recipe.encode("ascii")
    stream = io.BytesIO()
    Image.fromarray(integers).save(stream, format, icc_profile=srgb_profile(), exif=exif, **options)
    return stream.getvalue()


class _Writer(NamedTuple):
    write: Callable[[_Integers, str | None, int], bytes]
    deep: bool  # holds 16 bits per channel
    alpha: bool
    max_side: int


_WRITERS = {
    "png": _Writer(_write_png, deep=True, alpha=True, max_side=2**31 - 1),
    "jpeg": _Writer(_write_jpeg, deep=False, alpha=False, max_side=65_500),
    "webp": _Writer(_write_webp, deep=False, alpha=True, max_side=16_383),
    "tiff": _Writer(_write_tiff, deep=True, alpha=True, max_side=2**31 - 1),
}


def write_bytes(path: Path, data: bytes) -> None:
    """Writes beside the target and moves the whole file into its place, so that nobody ever sees half of it.

    Raises:
        ImageError: The folder is missing or may not be written, the disk is full, ….
    """
    try:
        target = path.resolve()  # a link stays a link
        partial = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with partial.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> ImageError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return ImageError(f"{path} cannot be written: its folder does not exist", "Create the folder first")
        case errno.EISDIR:
            return ImageError(f"{path} is a folder", "Name a file in it")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ImageError(f"{path} may not be written", "Choose another folder, or change its permissions")
        case errno.ENOSPC | errno.EDQUOT:
            return ImageError(f"{path} cannot be written: the disk is full", "Free some space, or choose another disk")
        case _:
            return ImageError(f"{path} cannot be written ({error.strerror})", "Choose another place")
