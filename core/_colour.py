"""A file's own colours → sRGB, by LittleCMS and the colour profile that the file embeds."""

from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
"""Decoded channels [H, W, C], uint8 or float32 in [0, 1]: C = 1 is grey, 3 is RGB, 4 is CMYK (1 = full ink)."""

Floats = NDArray[np.float32]

_SPACES = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}  # as bytes 16 to 20 of a profile name them


def to_srgb(samples: Samples, icc: bytes | None) -> tuple[Floats, str | None]:
    """Converts to sRGB; colours beyond its gamut are clipped, and a picture without a profile is taken for sRGB.

    Args:
        samples: Channels [H, W, C], see `Samples`.
        icc: The embedded profile.

    Returns:
        float32 [H, W, 3] in [0, 1], and a notice where the colours had to be guessed.
    """
    if icc:
        try:
            return _transform(samples, icc), None
        except Exception:  # there is no limit to what a damaged profile provokes
            return _guess(samples), "the embedded colour profile is damaged or does not fit the picture: ignored"
    if samples.shape[2] == 4:
        return _guess(samples), "CMYK without a colour profile: the colours are approximate"
    return _guess(samples), None


def unit(samples: Samples) -> Floats:
    """float32 in [0, 1] from unsigned integers of which the largest stands for 1; floats stay as they are."""
    top = np.iinfo(samples.dtype).max if samples.dtype.kind == "u" else 1
    return samples.astype(np.float32) / np.float32(top)


@cache
def srgb_profile() -> bytes:
    """The profile that every written picture carries; without the date of its making, so that files can be compared."""
    profile = bytearray(imagecodecs.cms_profile("srgb"))
    profile[24:36] = bytes(12)
    return bytes(profile)


@cache
def adobe_rgb_profile() -> bytes:
    """Adobe RGB (1998), for cameras that name it in EXIF and embed nothing."""
    return imagecodecs.cms_profile("adobergb")


def _guess(samples: Samples) -> Floats:
    floats = unit(samples)
    if floats.shape[2] == 4:
        return (1 - floats[..., :3]) * (1 - floats[..., 3:])
    return np.broadcast_to(floats, (*floats.shape[:2], 3))


def _transform(samples: Samples, icc: bytes) -> Floats:
    if samples.shape[2] == 1 and icc[16:20] == b"RGB ":  # greyscale under an RGB profile is common
        samples = np.repeat(samples, 3, axis=2)
    if icc[16:20] != _SPACES[samples.shape[2]]:
        raise ValueError("the profile is for another number of channels")
    if samples.shape[2] == 1 and samples.dtype == np.uint8:
        ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 256, 1)
        return np.take(_apply(ramp, icc)[0], samples[..., 0], axis=0)
    return unit(samples) if _is_srgb(icc) else _apply(samples, icc)


def _is_srgb(icc: bytes) -> bool:
    """Whether the profile is sRGB in all but name, so that converting would only add rounding."""
    if icc[16:20] != b"RGB ":
        return False
    ramp = np.linspace(0, 1, 17, dtype=np.float32)
    lattice = np.stack(np.meshgrid(ramp, ramp, ramp), axis=-1).reshape(17, 17 * 17, 3)
    return bool(np.abs(_apply(lattice, icc) - lattice).max() < 0.5 / 255)


def _apply(samples: Samples, icc: bytes) -> Floats:
    """Relative colorimetric with black point compensation: exact for RGB, and what printers' CMYK is made for.

    LittleCMS is exact from floats; from 8-bit RGB it is ten times quicker and still within 0.6/255. From 16-bit
    integers it interpolates in a coarse grid, off by up to 19/255 in dark saturated colours, so these come here as
    floats. Ink tables are no finer than 8 bits.
    """
    if samples.shape[2] == 4 and samples.dtype != np.uint8:
        samples = np.rint(samples * 255).astype(np.uint8)
    converted = imagecodecs.cms_transform(
        np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples),
        icc,
        srgb_profile(),
        colorspace={1: "gray", 3: "rgb", 4: "cmyk"}[samples.shape[2]],
        outcolorspace="rgb",
        outdtype="uint16",
        intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
        flags=imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION,
    )
    return unit(converted)
