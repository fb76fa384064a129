"""Bytes → decoded channels in the file's own colours: signatures, headers, orientation, decoders.

Files come from strangers: a closed list of decoders is chosen from by signature, never by file name, and whatever a
decoder raises over a damaged file becomes an `ImageError`.
"""

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from core._colour import Floats, Samples, adobe_rgb_profile, unit
from core.errors import ImageError, UserError

Source = bytes | str | os.PathLike[str]
"""A picture's file: its bytes, or the path to it."""

RECIPE_KEY = b"pyramid-style:recipe"
"""The keyword of the PNG text chunk that holds a recipe."""

MAX_RECIPE_BYTES = 256 * 1024


# ── Which format? ────────────────────────────────────────────────────────────────────────────────────────────────────

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "HEIF": rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)",
}


@dataclass(frozen=True, eq=False)
class File:
    """A file of a known format; `name` is what messages call it."""

    name: str
    format: str
    data: bytes


def readable() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here; HEIC ("HEIF") only where pillow-heif is installed."""
    return tuple(name for name in _SIGNATURES if name != "HEIF" or importlib.util.find_spec("pillow_heif"))


def load(source: Source) -> File:
    """Recognises a file by its first bytes, and reads the rest only then: the path might lead to a film.

    Raises:
        ImageError: It does not exist, cannot be read, is empty, or is not an image of a known kind.
    """
    if not isinstance(source, str | os.PathLike):
        return File("The picture", _recognise(bytes(source[:16]), "The picture"), bytes(source))
    path = Path(source)
    try:
        if not path.is_file():
            raise ImageError(f"{path} {'is not a file' if path.exists() else 'does not exist'}", "Check the path")
        with path.open("rb") as stream:
            head = stream.read(16)
            return File(path.name, _recognise(head, path.name), head + stream.read())
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror})", "Check its permissions and its disk") from error


def _recognise(head: bytes, name: str) -> str:
    if not head:
        raise ImageError(f"{name} is empty (0 bytes)", "Copy or download it again")
    for format, signature in _SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return format
    accepted = ", ".join(readable()).replace("HEIF", "HEIC")
    raise ImageError(f"{name} is not an image of a known kind", f"Use one of these: {accepted}")


@contextlib.contextmanager
def _explaining(file: File, damage: str) -> Iterator[None]:
    """Turns whatever a decoder raises over a damaged file (there is no limit to what) into an error with a remedy."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        cause = f"{file.name} is a {file.format} of more than 178 megapixels, too large for its reader"
        raise ImageError(cause, "Scale it down, or convert it to PNG") from error
    except Exception as error:
        remedy = "Copy or download it again, or export it anew from the program that made it"
        raise ImageError(f"{file.name} {damage}", remedy) from error


def _open(file: File) -> ImageFile.ImageFile:
    """Parses the header with the one plugin that the signature calls for.

    `Image.open` would also judge the size by a limit that is global to Pillow; here only the caller's counts.
    """
    plugins: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
    }
    plugin = plugins.get(file.format) or _heif_plugin(file.name)
    return plugin(io.BytesIO(file.data))


def _heif_plugin(name: str) -> Callable[[io.BytesIO], ImageFile.ImageFile]:
    try:
        plugin: Callable[[io.BytesIO], ImageFile.ImageFile] = importlib.import_module("pillow_heif").HeifImageFile
    except ImportError as error:
        remedy = "Install it with  pip install 'pyramid-style[heic]'  or export the picture as JPEG"
        raise ImageError(f"{name} is a HEIC picture, and the reader for these is not installed", remedy) from error
    return plugin


@contextlib.contextmanager
def _open_tiff(file: File) -> Iterator[tifffile.TiffFile]:
    logger = logging.getLogger("tifffile")
    if not logger.handlers:  # unheard, its warnings about a damaged file would go to the terminal, beside our own line
        logger.addHandler(logging.NullHandler())
    with tifffile.TiffFile(io.BytesIO(file.data)) as tiff:
        yield tiff


def _first_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    page = tiff.pages.first
    if not all(isinstance(value, int) for value in (page.imagelength, page.imagewidth, page.bitspersample)):
        raise ValueError("a damaged size, or channels of unequal depth")
    return page


# ── Orientation: EXIF says how the stored rows must be turned to stand upright ───────────────────────────────────────

_SIDEWAYS = (5, 6, 7, 8)
_TURNS: dict[int, Callable[[Samples], Samples]] = {
    1: lambda rows: rows,
    2: np.fliplr,
    3: lambda rows: np.rot90(rows, 2),
    4: np.flipud,
    5: lambda rows: np.swapaxes(rows, 0, 1),
    6: lambda rows: np.rot90(rows, -1),
    7: lambda rows: np.rot90(np.swapaxes(rows, 0, 1), 2),
    8: np.rot90,
}


def _exif(file: File, image: ImageFile.ImageFile) -> Image.Exif:
    """The EXIF data, without decoding the picture as Pillow does to find a PNG's; damaged data count as none."""
    with contextlib.suppress(Exception):
        if file.format != "PNG":
            return image.getexif()
        exif = Image.Exif()
        exif.load(next((body for kind, body in _png_chunks(file.data) if kind == b"eXIf"), b""))
        return exif
    return Image.Exif()


def _orientation(tag: Any) -> int:
    return tag if isinstance(tag, int) and tag in _TURNS else 1


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG file, except for the pixels."""
    start = 8
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind != b"IDAT":
            yield kind, data[start + 8 : start + 8 + length]
        start += 12 + length


# ── The header ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Header:
    """What a file says about its picture before anything is decoded.

    Attributes:
        format: Pillow's name for the format, such as "JPEG".
        height: Height in pixels once the picture stands upright.
        width: Width, likewise.
        frames: Number of frames or pages; only the first is ever read.
    """

    format: str
    height: int
    width: int
    frames: int


def header(file: File) -> Header:
    """Reads a file's header; no pixel is decoded.

    Raises:
        ImageError: The header is damaged.
    """
    with _explaining(file, f"is a {file.format} whose header is damaged, or says that the picture has no pixels"):
        return _tiff_header(file) if file.format == "TIFF" else _pillow_header(file)


def _pillow_header(file: File) -> Header:
    image = _open(file)
    orientation = _orientation(_exif(file, image).get(ExifTags.Base.Orientation))
    height, width = _upright(image.height, image.width, orientation)
    return Header(file.format, height, width, getattr(image, "n_frames", 1))


def _tiff_header(file: File) -> Header:
    with _open_tiff(file) as tiff:
        page = _first_page(tiff)
        orientation = _orientation(page.tags.valueof(int(ExifTags.Base.Orientation)))
        height, width = _upright(page.imagelength, page.imagewidth, orientation)
        return Header(file.format, height, width, len(tiff.pages))


def _upright(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if orientation in _SIDEWAYS else (height, width)


# ── Decoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Decoded(NamedTuple):
    """A decoded first frame, upright.

    Attributes:
        samples: Colour channels [H, W, C] in the file's own colours.
        alpha: float32 [H, W] in [0, 1], or None where the file has none.
        icc: The embedded colour profile.
    """

    samples: Samples
    alpha: Floats | None
    icc: bytes | None


def decode(file: File) -> Decoded:
    """Decodes the first frame: Pillow does, except beyond 8 bits, where it would round, and libpng and tifffile do not.

    Raises:
        ImageError: The file is damaged, cut short, or of a kind that the decoders do not know.
    """
    with _explaining(file, f"is a damaged {file.format}, cut short, or of an unusual kind"):
        if file.format == "PNG" and file.data[24] == 16:  # the header's bit depth
            return _decode_deep_png(file)
        if file.format == "TIFF":
            with _open_tiff(file) as tiff:
                page = _first_page(tiff)
                _check_tiles(page)
                if page.bitspersample > 8:
                    return _decode_deep_tiff(page, file)
        return _decode_with_pillow(file)


_COLOUR_MODES = dict.fromkeys(("1", "L", "LA", "La"), "L") | {"CMYK": "CMYK"}
_COLOUR_MODES |= dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"), "RGB")


def _decode_with_pillow(file: File) -> Decoded:
    image = _open(file)
    image.load()
    mode = _COLOUR_MODES[image.mode]
    channels = image.convert(mode + "A" if image.has_transparency_data else mode)
    exif = _exif(file, image)  # Pillow and pillow-heif turn TIFF and HEIC upright themselves; then this says so.
    icc = image.info.get("icc_profile") or _profile_by_camera(exif)
    return _arrange(np.asarray(channels), len(mode), icc, exif.get(ExifTags.Base.Orientation))


def _profile_by_camera(exif: Image.Exif) -> bytes | None:
    """Cameras set to Adobe RGB often embed no profile, and say "R03" instead (the DCF standard's option file)."""
    with contextlib.suppress(Exception):
        if exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex) == "R03":
            return adobe_rgb_profile()
    return None


def _decode_deep_png(file: File) -> Decoded:
    image = _open(file)
    samples = np.atleast_3d(imagecodecs.png_decode(file.data))
    colours = 1 if samples.shape[2] < 3 else 3
    orientation = _exif(file, image).get(ExifTags.Base.Orientation)
    return _arrange(samples, colours, image.info.get("icc_profile"), orientation)


# These unpack into a buffer of the expected size. The picture codecs inside TIFF (JPEG, JPEG 2000 …) believe the size
# that the packed data claim, and 300 bytes can claim 12 GB.
_BOUNDED_CODECS = ("NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "PACKBITS", "LZMA", "ZSTD")
_TIFF_COLOURS = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3, "SEPARATED": 4}


def _decode_deep_tiff(page: tifffile.TiffPage, file: File) -> Decoded:
    kind = _known_kind(page, file)
    samples = page.asarray()
    samples = np.atleast_3d(np.moveaxis(samples, 0, -1) if page.axes.startswith("S") else samples)
    integral = samples.dtype.kind == "u"
    samples = samples.astype(np.float32) / np.float32(2**page.bitspersample - 1 if integral else 1)
    if not (samples.min() >= 0 and samples.max() <= 1):  # so written, it also refuses NaN
        cause = f"{file.name} holds floating-point values from {samples.min():g} to {samples.max():g}"
        raise ImageError(cause, "Bring its brightness into 0 … 1")
    colours = _TIFF_COLOURS[kind]
    if kind == "MINISWHITE":
        samples[..., 0] = 1 - samples[..., 0]
    if tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples:
        samples[..., :colours] /= np.maximum(samples[..., colours:], 1 / 65535)
    if tifffile.EXTRASAMPLE.UNSPECIFIED in page.extrasamples:  # a fourth channel, but not alpha
        samples = samples[..., :colours]
    icc, orientation = page.tags.valueof(34675), page.tags.valueof(int(ExifTags.Base.Orientation))
    return _arrange(samples.clip(0, 1), colours, icc, orientation)


def _known_kind(page: tifffile.TiffPage, file: File) -> str:
    """The name of the colour model; refused is what would be misread, or unpacked without bounds."""
    kind, codec = (str(getattr(tag, "name", tag)) for tag in (page.photometric, page.compression))
    colours = _TIFF_COLOURS.get(kind, 0)
    known = colours and page.samplesperpixel in (colours, colours + 1) and codec in _BOUNDED_CODECS
    if not known or str(page.dtype) not in ("uint16", "uint32", "float16", "float32") or page.imagedepth != 1:
        cause = f"{file.name} is a TIFF of a kind not known here ({page.dtype}, {kind}, {codec})"
        raise ImageError(cause, "Save it as 8- or 16-bit RGB, with LZW compression or none")
    return kind


def _check_tiles(page: tifffile.TiffPage) -> None:
    """Refuses what would take far more memory than the picture's size tells."""
    if page.is_tiled and page.tilewidth * page.tilelength > max(4 * page.imagewidth * page.imagelength, 1 << 20):
        raise ValueError("tiles far larger than the picture")


def _arrange(samples: Samples, colours: int, icc: bytes | None, orientation: Any) -> Decoded:
    """Turns the picture upright, and parts its colour channels from the alpha that may follow them."""
    samples = _TURNS[_orientation(orientation)](np.atleast_3d(samples))
    if samples.dtype != np.uint8:
        samples = unit(samples)
    return Decoded(samples[..., :colours], unit(samples[..., colours]) if samples.shape[2] > colours else None, icc)


# ── The text that a file carries ─────────────────────────────────────────────────────────────────────────────────────

_RECIPE_CHUNK = re.compile(RECIPE_KEY + rb"\0([\0\1])\0[^\0]*\0[^\0]*\0(.*)", re.DOTALL)  # the layout of iTXt


def stored_text(file: File) -> str | None:
    """The text in the field where this project keeps its recipes; it may be missing, damaged or someone else's."""
    with contextlib.suppress(Exception):
        if file.format == "PNG":
            return _png_text(file.data)
        if file.format == "TIFF":
            with _open_tiff(file) as tiff:
                return tiff.pages.first.description
        comment = _exif(file, _open(file)).get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        return bytes(comment)[8:].decode("ascii")  # the first eight bytes name the character set
    return None


def _png_text(data: bytes) -> str | None:
    for kind, body in _png_chunks(data):
        if kind == b"iTXt" and (found := _RECIPE_CHUNK.fullmatch(body)):
            packed, text = found.groups()
            # Not written packed here, but optimisers of PNG files do so.
            return (zlib.decompressobj().decompress(text, MAX_RECIPE_BYTES) if packed == b"\1" else text).decode()
    return None
