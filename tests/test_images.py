"""`core.images`: every format, profile, orientation, depth, alpha and recipe; and a folder of broken files."""

import errno
import io
import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from core import images
from core.errors import ImageError, RecipeError

Floats = NDArray[np.float64]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # its remarks on damaged files


# ── Material ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def noise(height: int, width: int, channels: int = 3, *, seed: int = 0) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def smooth(height: int, width: int) -> Tensor:
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    return torch.stack([0.2 + 0.6 * x + 0 * y, 0.8 - 0.5 * y + 0 * x, 0.5 + 0.3 * torch.sin(3 * x * y)])[None]


def rgb8(height: int = 20, width: int = 30, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pillow_bytes(picture: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def tiff_bytes(samples: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, metadata=None, **options)
    return stream.getvalue()


def heic_bytes(picture: Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC is an extra")
    stream = io.BytesIO()
    pillow_heif.from_pillow(picture).save(stream, quality=-1, chroma=444, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def deep_png(samples: NDArray[np.uint16], *extra: bytes) -> bytes:
    """A 16-bit PNG made by hand, so that the reader is not tested with its own library."""
    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows(picture: images.Picture) -> Floats:
    """Pixels as [H, W, 3]."""
    return picture.pixels[0].permute(1, 2, 0).double().numpy()


def opacity(picture: images.Picture) -> Floats:
    assert picture.alpha is not None
    return picture.alpha[0, 0].double().numpy()


# ── Rounding and resizing ────────────────────────────────────────────────────────────────────────────────────────────


def test_quantize_rounds_to_nearest_and_clamps() -> None:
    steps = torch.tensor([-3.0, 0.0, 0.49, 0.51, 127.4, 127.6, 255.0, 300.0]) / 255
    expected = torch.tensor([0.0, 0, 0, 1, 127, 128, 255, 255]) / 255
    assert torch.equal(images.quantize(steps), expected)
    assert torch.equal(images.quantize(torch.tensor([0.49, 0.51]) / 65535, bits=16), torch.tensor([0.0, 1.0]) / 65535)


def test_quantize_refuses_other_depths() -> None:
    with pytest.raises(ValueError, match="12"):
        images.quantize(torch.zeros(3), bits=12)


@pytest.mark.parametrize("size", [(16, 24), (7, 11), (1, 1), (33, 5), (64, 96)])
def test_resize_agrees_with_pillow(size: images.Size) -> None:
    pixels = noise(32, 48)
    for channel, result in zip(pixels[0].numpy(), images.resize(pixels, size)[0].numpy(), strict=True):
        reference = Image.fromarray(channel).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(result, np.asarray(reference), atol=2e-6)


def test_resize_to_the_same_size_is_the_identity() -> None:
    pixels = noise(9, 13)
    assert images.resize(pixels, (9, 13)) is pixels


def test_resize_is_differentiable_and_not_clamped() -> None:
    pixels = noise(8, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: images.resize(x, (4, 5)), pixels)
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    enlarged = images.resize(edge, (32, 32))
    assert enlarged.min() < -0.02
    assert enlarged.max() > 1.02


# ── Round trips ──────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16)]),
    st.integers(8, 40),
    st.integers(8, 40),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_lossless_formats_hold_exactly_what_quantize_says(
    kind: tuple[str, int], height: int, width: int, transparent: bool, seed: int
) -> None:
    format, bits = kind
    pixels = 1.4 * noise(height, width, seed=seed) - 0.2  # beyond [0, 1] on both sides
    alpha = noise(height, width, 1, seed=seed + 1).clamp(min=0.01) if transparent else None
    picture = images.read(images.encode(pixels, format, bits=bits, alpha=alpha))
    assert picture.format == format.upper()
    assert picture.notices == ()
    assert torch.equal(picture.pixels, images.quantize(pixels, bits))
    if alpha is None:
        assert picture.alpha is None
    else:
        assert picture.alpha is not None
        assert torch.equal(picture.alpha, images.quantize(alpha, bits))


def test_a_written_16_bit_png_is_one_to_others_too() -> None:
    pixels = noise(10, 12)
    data = images.encode(pixels, bits=16)
    assert data[24] == 16
    high_bytes = (images.quantize(pixels, 16) * 65535).round().int()[0].permute(1, 2, 0).numpy() >> 8
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), high_bytes)  # Pillow drops the low bytes


@pytest.mark.parametrize(("format", "tolerance"), [("jpeg", 5), ("webp", 8)])
def test_lossy_formats_come_close(format: str, tolerance: float) -> None:
    pixels = smooth(64, 96)
    picture = images.read(images.encode(pixels, format))
    assert picture.format == format.upper()
    assert (picture.pixels - pixels).abs().max() < tolerance / 255
    assert (picture.pixels - pixels).abs().mean() < 1 / 255


def test_quality_is_heeded() -> None:
    pixels = noise(64, 64)
    for format in ("jpeg", "webp"):
        assert len(images.encode(pixels, format, quality=10)) < len(images.encode(pixels, format, quality=95)) / 2


def test_jpeg_keeps_chroma_at_full_resolution() -> None:
    image = Image.open(io.BytesIO(images.encode(smooth(64, 64), "jpeg")))
    assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]


def test_webp_keeps_alpha_and_jpeg_lays_it_over_white() -> None:
    pixels, alpha = torch.full((1, 3, 16, 32), 0.25), torch.ones(1, 1, 16, 32)
    alpha[..., 16:] = 102 / 255
    webp = images.read(images.encode(pixels, "webp", alpha=alpha))
    assert webp.alpha is not None
    assert torch.equal(webp.alpha, alpha)
    jpeg = images.read(images.encode(pixels, "jpeg", alpha=alpha))
    assert jpeg.alpha is None
    assert jpeg.pixels[..., :8].mean() == pytest.approx(0.25, abs=0.01)
    assert jpeg.pixels[..., 24:].mean() == pytest.approx(0.25 * 0.4 + 0.6, abs=0.01)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
def test_every_written_file_carries_srgb_and_the_same_bytes_each_time(format: str) -> None:
    pixels = smooth(16, 16)
    data = images.encode(pixels, format, recipe={"seed": 1})
    assert data == images.encode(pixels, format, recipe={"seed": 1})
    icc = Image.open(io.BytesIO(data)).info["icc_profile"]
    assert icc[24:36] == bytes(12)  # no date of making
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    reds, greens, blues = (profile.profile.red_primary, profile.profile.green_primary, profile.profile.blue_primary)
    for primary, expected in zip((reds, greens, blues), ((0.648, 0.331), (0.321, 0.598), (0.156, 0.066)), strict=True):
        assert primary is not None
        assert primary[1][:2] == pytest.approx(expected, abs=2e-3)  # sRGB's primaries as seen under D50


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_written_too(dtype: torch.dtype) -> None:
    pixels = smooth(8, 8).to(dtype).requires_grad_()
    assert torch.equal(images.read(images.encode(pixels)).pixels, images.quantize(pixels))


# ── Orientation ──────────────────────────────────────────────────────────────────────────────────────────────────────

# Stored row i, column j as a pixel of the upright picture of height H and width W. From EXIF 2.32, tag Orientation:
# 6, for instance, has the visual right side in row 0, and the visual top in column 0.
STORED: dict[int, Callable[[int, int, int, int], tuple[int, int]]] = {
    1: lambda i, j, H, W: (i, j),
    2: lambda i, j, H, W: (i, W - 1 - j),
    3: lambda i, j, H, W: (H - 1 - i, W - 1 - j),
    4: lambda i, j, H, W: (H - 1 - i, j),
    5: lambda i, j, H, W: (j, i),
    6: lambda i, j, H, W: (j, W - 1 - i),
    7: lambda i, j, H, W: (H - 1 - j, W - 1 - i),
    8: lambda i, j, H, W: (H - 1 - j, i),
}


def stored(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    height, width = upright.shape[:2]
    shape = (width, height) if orientation >= 5 else (height, width)
    source = STORED[orientation]
    return np.array([[upright[source(i, j, height, width)] for j in range(shape[1])] for i in range(shape[0])])


def orientation_tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def late_exif_png(samples: NDArray[np.uint8], exif: Image.Exif) -> bytes:
    """A PNG whose EXIF follows the pixels, as several programs write it."""
    data = pillow_bytes(Image.fromarray(samples), "PNG")
    return data[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:]


def deepened(samples: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return samples.astype(np.uint16) * 257


ORIENTED: dict[str, Callable[[NDArray[np.uint8], int], bytes]] = {
    "jpeg": lambda s, o: pillow_bytes(Image.fromarray(s), "JPEG", quality=95, subsampling=0, exif=orientation_tag(o)),
    "png": lambda s, o: pillow_bytes(Image.fromarray(s), "PNG", exif=orientation_tag(o)),
    "png, late": lambda s, o: late_exif_png(s, orientation_tag(o)),
    "png, 16 bits": lambda s, o: deep_png(deepened(s), chunk(b"eXIf", orientation_tag(o).tobytes()[6:])),
    "webp": lambda s, o: pillow_bytes(Image.fromarray(s), "WEBP", lossless=True, exif=orientation_tag(o)),
    "tiff": lambda s, o: tiff_bytes(s, photometric="rgb", extratags=[(274, 3, 1, o, True)]),
    "tiff, 16 bits": lambda s, o: tiff_bytes(deepened(s), photometric="rgb", extratags=[(274, 3, 1, o, True)]),
    "heic": lambda s, o: heic_bytes(Image.fromarray(s), exif=orientation_tag(o).tobytes()),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ORIENTED)
def test_every_orientation_comes_upright(kind: str, orientation: int) -> None:
    upright = rgb8(2, 3).repeat(16, axis=0).repeat(16, axis=1)  # six blocks that survive lossy compression
    data = ORIENTED[kind](stored(upright, orientation), orientation)
    picture = images.read(data)
    assert picture.pixels.shape == (1, 3, 32, 48)
    assert np.abs(rows(picture) - upright / 255).max() < (0.03 if kind in ("jpeg", "heic") else 1e-6)
    header = images.probe(data)
    assert (header.height, header.width) == (32, 48)


@pytest.mark.parametrize("nonsense", [0, 9, 65535])
def test_nonsensical_orientation_is_ignored(nonsense: int) -> None:
    samples = rgb8()
    picture = images.read(ORIENTED["png"](samples, nonsense))
    np.testing.assert_allclose(rows(picture), samples / 255, atol=1e-6)


def test_damaged_exif_is_ignored() -> None:
    samples = rgb8()
    data = pillow_bytes(Image.fromarray(samples), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense")
    np.testing.assert_allclose(rows(images.read(data)), samples / 255, atol=1e-6)


# ── Colour profiles, against an independent computation in float64 ───────────────────────────────────────────────────

D50 = np.array([0.9642, 1.0, 0.8249])
D65_XY = (0.3127, 0.3290)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3_XY = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_GAMMA = 563 / 256


def xyz(x: float, y: float) -> Floats:
    return np.array([x / y, 1, (1 - x - y) / y])


def to_xyz_d50(primaries: tuple[tuple[float, float], ...]) -> Floats:
    """The matrix from linear RGB with a D65 white to XYZ under D50."""
    columns = np.stack([xyz(*primary) for primary in primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, xyz(*D65_XY))
    adaptation = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ xyz(*D65_XY))) @ BRADFORD
    return np.asarray(adaptation @ matrix)


def srgb_to_linear(values: Floats) -> Floats:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: Floats) -> Floats:
    values = values.clip(0, 1)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def converted(linear: Floats, primaries: tuple[tuple[float, float], ...]) -> Floats:
    return linear_to_srgb(linear @ to_xyz_d50(primaries).T @ np.linalg.inv(to_xyz_d50(SRGB_XY)).T)


def s15_fixed_16(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def gamma_curve(gamma: float) -> bytes:
    return b"para\0\0\0\0\0\0\0\0" + s15_fixed_16(gamma)


SRGB_CURVE = b"para\0\0\0\0\0\3\0\0" + s15_fixed_16(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def profile(space: bytes, kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile with the tags given, and those that every profile must have."""
    text = "made for a test".encode("utf-16-be")
    words = b"mluc\0\0\0\0\0\0\0\1\0\0\0\x0cenUS" + struct.pack(">II", len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": b"XYZ \0\0\0\0" + s15_fixed_16(*D50), **tags}
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = bytearray(128)
    header[0:4] = struct.pack(">I", start + len(body))
    header[8:12] = b"\4\x30\0\0"
    header[12:24] = kind + space + connection
    header[36:40] = b"acsp"
    header[68:80] = s15_fixed_16(*D50)
    return bytes(header) + table + body


def rgb_profile(primaries: tuple[tuple[float, float], ...], curve: bytes) -> bytes:
    columns = to_xyz_d50(primaries).T
    colorants = {
        name: b"XYZ \0\0\0\0" + s15_fixed_16(*column)
        for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    return profile(b"RGB ", b"mntr", colorants | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


ADOBE = rgb_profile(ADOBE_XY, gamma_curve(ADOBE_GAMMA))
P3 = rgb_profile(P3_XY, SRGB_CURVE)
GREY = profile(b"GRAY", b"mntr", {b"kTRC": gamma_curve(1.8)})

WIDE: dict[str, tuple[bytes, Callable[[Floats], Floats]]] = {
    "Adobe RGB": (ADOBE, lambda values: converted(values**ADOBE_GAMMA, ADOBE_XY)),
    "Display P3": (P3, lambda values: converted(srgb_to_linear(values), P3_XY)),
}
HOLDERS: dict[str, Callable[[NDArray[np.uint8], bytes], bytes]] = {
    "png": lambda s, icc: pillow_bytes(Image.fromarray(s), "PNG", icc_profile=icc),
    "webp": lambda s, icc: pillow_bytes(Image.fromarray(s), "WEBP", lossless=True, icc_profile=icc),
    "tiff": lambda s, icc: tiff_bytes(s, photometric="rgb", iccprofile=icc),
    "png, 16 bits": lambda s, icc: deep_png(deepened(s), chunk(b"iCCP", b"x\0\0" + zlib.compress(icc))),
    "tiff, 16 bits": lambda s, icc: tiff_bytes(deepened(s), photometric="rgb", iccprofile=icc),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", WIDE)
def test_wide_gamuts_become_srgb(name: str, holder: str) -> None:
    icc, reference = WIDE[name]
    samples = rgb8(40, 50)
    picture = images.read(HOLDERS[holder](samples, icc))
    difference = np.abs(rows(picture) - reference(samples / 255))
    assert picture.notices == ()
    assert difference.max() * 255 < (0.1 if "16" in holder else 1)
    assert difference.mean() * 255 < 0.02
    assert np.abs(reference(samples / 255) - samples / 255).max() > 0.1  # else the test would prove nothing


def test_a_p3_jpeg_becomes_srgb() -> None:
    colour = np.array([200, 60, 40]) / 255
    image = Image.new("RGB", (32, 32), (200, 60, 40))
    picture = images.read(pillow_bytes(image, "JPEG", quality=100, icc_profile=P3))
    assert np.abs(rows(picture) - WIDE["Display P3"][1](colour)).max() * 255 < 2


def test_a_p3_heic_becomes_srgb() -> None:
    image = Image.new("RGB", (64, 64), (200, 60, 40))
    image.info["icc_profile"] = P3
    picture = images.read(heic_bytes(image))
    assert np.abs(rows(picture) - WIDE["Display P3"][1](np.array([200, 60, 40]) / 255)).max() * 255 < 3


def test_sixteen_bits_keep_their_precision_through_a_profile() -> None:
    ramp = np.linspace(20_000, 21_000, 1000).astype(np.uint16).reshape(10, 100, 1).repeat(3, axis=2)
    picture = images.read(tiff_bytes(ramp, photometric="rgb", iccprofile=ADOBE))
    reference = WIDE["Adobe RGB"][1](ramp / 65535)
    np.testing.assert_allclose(rows(picture), reference, atol=2e-5)
    assert len(np.unique(rows(picture)[..., 1])) > 900


def test_an_srgb_profile_of_another_make_changes_nothing() -> None:
    samples = rgb8()
    picture = images.read(HOLDERS["png"](samples, rgb_profile(SRGB_XY, SRGB_CURVE)))
    assert np.array_equal(picture.pixels[0].permute(1, 2, 0).numpy(), samples.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("deep", [False, True])
def test_grey_profiles(deep: bool) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    samples = deepened(ramp) if deep else ramp
    picture = images.read(tiff_bytes(samples, photometric="minisblack", iccprofile=GREY))
    reference = linear_to_srgb((ramp / 255) ** 1.8)
    assert np.abs(rows(picture) - reference[..., None]).max() * 255 < 0.05


def test_grey_under_an_rgb_profile() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = images.read(HOLDERS["png"](ramp, P3))
    assert picture.notices == ()
    assert np.abs(rows(picture) - ramp[..., None] / 255).max() * 255 < 0.5  # P3 has the same curve and white as sRGB


def test_a_camera_that_only_says_adobe_rgb_in_exif() -> None:
    def directory(tag: int, type: int, count: int, value: bytes) -> bytes:
        return struct.pack("<HHHI", 1, tag, type, count) + value + bytes(4)

    # Each 18-byte directory points to the next: EXIF, in it interoperability, in it the index.
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory(0x8769, 4, 1, struct.pack("<I", 26))
    exif += directory(0xA005, 4, 1, struct.pack("<I", 44)) + directory(1, 2, 4, b"R03\0")
    data = pillow_bytes(Image.new("RGB", (32, 32), (200, 120, 90)), "JPEG", quality=100, exif=exif)
    colour = WIDE["Adobe RGB"][1](np.array([200, 120, 90]) / 255)
    assert np.abs(rows(images.read(data)) - colour).max() * 255 < 2.5


# Inks to Lab, at the sixteen corners of a press that knows only full ink or none. Lab is chosen in whole steps of the
# table's 8 bits; all four inks together give black, white is the paper.
INKS: dict[tuple[int, ...], tuple[int, int, int]] = {
    (0, 0, 0, 0): (255, 128, 128),
    (1, 0, 0, 0): (140, 100, 90),
    (0, 1, 0, 0): (120, 195, 128),
}


def cmyk_profile() -> bytes:
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = bytes(value for corner in corners for value in INKS.get(corner, (0, 128, 128)))
    ramp = bytes(range(256))
    matrix = s15_fixed_16(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + table + ramp * 3
    return profile(b"CMYK", b"prtr", {b"A2B0": lut, b"A2B1": lut}, connection=b"Lab ")


def lab_to_srgb(encoded: tuple[int, int, int]) -> Floats:
    lightness, a, b = encoded[0] * 100 / 255, encoded[1] - 128, encoded[2] - 128
    f = np.array([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200])
    relative = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return linear_to_srgb(np.linalg.inv(to_xyz_d50(SRGB_XY)) @ (relative * D50))


@pytest.mark.parametrize("holder", ["jpeg", "tiff", "tiff, 16 bits"])
@pytest.mark.parametrize("inks", INKS)
def test_cmyk_with_a_profile(inks: tuple[int, ...], holder: str) -> None:
    samples = np.full((16, 16, 4), np.array(inks) * 255, dtype=np.uint8)
    data = {
        "jpeg": lambda: pillow_bytes(Image.fromarray(samples, "CMYK"), "JPEG", quality=100, icc_profile=cmyk_profile()),
        "tiff": lambda: tiff_bytes(samples, photometric="separated", iccprofile=cmyk_profile()),
        "tiff, 16 bits": lambda: tiff_bytes(deepened(samples), photometric="separated", iccprofile=cmyk_profile()),
    }[holder]()
    picture = images.read(data)
    assert picture.notices == ()
    assert np.abs(rows(picture) - lab_to_srgb(INKS[inks])).max() * 255 < 2


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile_is_approximate_and_says_so(format: str) -> None:
    # As Photoshop does, Pillow writes a CMYK JPEG with inverted values and an Adobe marker.
    image = Image.new("CMYK", (16, 16), (255, 0, 51, 51))
    picture = images.read(pillow_bytes(image, format))
    assert rows(picture).reshape(-1, 3).mean(axis=0) == pytest.approx([0, 0.8, 0.64], abs=0.01)
    assert len(picture.notices) == 1
    assert "CMYK" in picture.notices[0]


@pytest.mark.parametrize("icc", [b"rubbish", ADOBE[:200], GREY, bytes(500)], ids=["rubbish", "cut", "grey", "zeros"])
def test_a_broken_profile_is_a_notice(icc: bytes) -> None:
    samples = rgb8()
    picture = images.read(HOLDERS["png"](samples, icc))
    assert len(picture.notices) == 1
    assert "profile" in picture.notices[0]
    np.testing.assert_allclose(rows(picture), samples / 255, atol=1e-6)


# ── Depths, modes and transparency ───────────────────────────────────────────────────────────────────────────────────


def deep(channels: int) -> NDArray[np.uint16]:
    return np.random.default_rng(3).integers(1, 65536, (20, 30, channels), dtype=np.uint16)


@pytest.mark.parametrize("holder", ["png", "tiff", "tiff, lzw", "tiff, planar"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_read_whole(channels: int, holder: str) -> None:
    samples = deep(channels)
    colours, planar = 1 if channels < 3 else 3, holder == "tiff, planar" and channels > 1
    if holder == "png":
        data = deep_png(samples)
    else:
        data = tiff_bytes(
            np.moveaxis(samples, 2, 0) if planar else samples.squeeze(),
            photometric="minisblack" if colours == 1 else "rgb",
            planarconfig=("separate" if planar else "contig") if channels > 1 else None,
            extrasamples=["unassalpha"] if channels > colours else None,
            compression="lzw" if holder == "tiff, lzw" else None,
        )
    picture = images.read(data)
    exact = samples.astype(np.float32) / np.float32(65535)
    np.testing.assert_array_equal(rows(picture), np.broadcast_to(exact[..., :colours], (20, 30, 3)))
    assert (picture.alpha is not None) == (channels > colours)
    if picture.alpha is not None:
        np.testing.assert_array_equal(opacity(picture), exact[..., -1])


def test_a_transparent_colour_in_a_16_bit_png() -> None:
    samples = deep(3)
    picture = images.read(deep_png(samples, chunk(b"tRNS", samples[4, 5].astype(">u2").tobytes())))
    assert np.argwhere(opacity(picture) == 0).tolist() == [[4, 5]]


def test_tiff_of_other_depths() -> None:
    grey = deep(1)[..., 0]
    inverted = images.read(tiff_bytes(grey, photometric="miniswhite"))
    np.testing.assert_allclose(rows(inverted)[..., 0], 1 - grey / 65535, atol=1e-7)
    wide = images.read(tiff_bytes(deep(3).astype(np.uint32) * 65537, photometric="rgb"))
    np.testing.assert_allclose(rows(wide), deep(3) / 65535, atol=1e-7)
    unit = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    np.testing.assert_array_equal(rows(images.read(tiff_bytes(unit, photometric="rgb"))), unit)
    half = images.read(tiff_bytes(unit.astype(np.float16), photometric="rgb"))
    np.testing.assert_array_equal(rows(half), unit.astype(np.float16))


def test_associated_and_unspecified_channels_of_a_tiff() -> None:
    colour, alpha = deep(3) / 65535, np.linspace(0.2, 1, 600).reshape(20, 30, 1)
    premultiplied = (np.concatenate([colour * alpha, alpha], axis=2) * 65535).round().astype(np.uint16)
    associated = images.read(tiff_bytes(premultiplied, photometric="rgb", extrasamples=["assocalpha"]))
    np.testing.assert_allclose(rows(associated), colour, atol=6e-5)
    np.testing.assert_allclose(opacity(associated), alpha[..., 0], atol=1e-5)
    unspecified = images.read(tiff_bytes(deep(4), photometric="rgb", extrasamples=["unspecified"]))
    assert unspecified.alpha is None


def palette() -> Image.Image:
    image = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30) % 4, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 51, 102, 153])
    return image


PALETTE_COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [51, 102, 153]]) / 255


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP"])
def test_palettes(format: str) -> None:
    picture = images.read(pillow_bytes(palette(), format))
    assert picture.alpha is None
    np.testing.assert_allclose(rows(picture), PALETTE_COLOURS[np.asarray(palette())], atol=1e-6)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palettes_with_a_transparent_entry(format: str) -> None:
    picture = images.read(pillow_bytes(palette(), format, transparency=2))
    np.testing.assert_array_equal(opacity(picture), np.asarray(palette()) != 2)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["1", "L"])
def test_greys(mode: str, format: str) -> None:
    image = Image.fromarray(rgb8(20, 30, 1)[..., 0]).convert(mode)
    picture = images.read(pillow_bytes(image, format))
    np.testing.assert_allclose(rows(picture), np.asarray(image.convert("RGB")) / 255, atol=1e-6)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_with_alpha(format: str) -> None:
    samples = rgb8(20, 30, 2).clip(1)
    picture = images.read(pillow_bytes(Image.fromarray(samples, "LA"), format))
    np.testing.assert_allclose(rows(picture), samples[..., :1].repeat(3, axis=2) / 255, atol=1e-6)
    np.testing.assert_allclose(opacity(picture), samples[..., 1] / 255, atol=1e-6)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
def test_tiff_compressions(compression: str) -> None:
    image = Image.new("RGB", (30, 20), (200, 60, 40))
    picture = images.read(pillow_bytes(image, "TIFF", compression=compression))
    assert np.abs(rows(picture) - np.array([200, 60, 40]) / 255).max() * 255 < 2


def test_bmp_and_webp_and_heic() -> None:
    samples = rgb8()
    for data in (
        pillow_bytes(Image.fromarray(samples), "BMP"),
        pillow_bytes(Image.fromarray(samples), "WEBP", lossless=True),
    ):
        np.testing.assert_allclose(rows(images.read(data)), samples / 255, atol=1e-6)
    heic = images.read(heic_bytes(Image.new("RGBA", (64, 48), (200, 60, 40, 102))))
    assert heic.format == "HEIF"
    assert np.abs(rows(heic) - np.array([200, 60, 40]) / 255).max() * 255 < 3
    assert np.abs(opacity(heic) - 0.4).max() * 255 < 3


def test_a_fully_opaque_alpha_is_none_at_all() -> None:
    samples = rgb8(channels=4)
    samples[..., 3] = 255
    assert images.read(pillow_bytes(Image.fromarray(samples), "PNG")).alpha is None


def test_invisible_pixels_get_the_mean_visible_colour() -> None:
    samples = rgb8(channels=4).clip(1)
    samples[5:15, 5:15] = 0  # transparent black
    picture = images.read(pillow_bytes(Image.fromarray(samples), "PNG"))
    weights, visible = samples[..., 3:] / 255, samples[..., 3] > 0
    mean = (samples[..., :3] / 255 * weights).sum((0, 1)) / weights.sum()
    np.testing.assert_allclose(rows(picture)[~visible], np.broadcast_to(mean, (100, 3)), atol=1e-5)
    np.testing.assert_allclose(rows(picture)[visible], samples[visible][:, :3] / 255, atol=1e-6)


def test_where_nothing_is_visible_the_colours_stay() -> None:
    samples = rgb8(channels=4)
    samples[..., 3] = 0
    picture = images.read(pillow_bytes(Image.fromarray(samples), "PNG"))
    assert not opacity(picture).any()
    np.testing.assert_allclose(rows(picture), samples[..., :3] / 255, atol=1e-6)


# ── Several frames ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame_is_used(format: str) -> None:
    first, *others = (Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue"))
    options = {} if format == "TIFF" else {"duration": 40}
    data = pillow_bytes(first, format, save_all=True, append_images=others, **options)
    picture = images.read(data)
    assert np.abs(rows(picture) - [1, 0, 0]).max() < 0.02
    assert len(picture.notices) == 1
    assert "first of 3" in picture.notices[0]
    assert images.probe(data).frames == 3


def test_probe_reads_a_header() -> None:
    header = images.probe(pillow_bytes(Image.new("RGB", (30, 20)), "JPEG"))
    assert header == images.Header(format="JPEG", height=20, width=30, frames=1)


# ── The recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────

RECIPE: dict[str, Any] = {
    "software": "pyramid-style",
    "seed": 7,
    "settings": {"levels": 3, "strength": 0.95, "noise": [{"spots": 9, "edge": None}], "name": "Äpfel 🎨"},
    "sizes": [[3072, 2048]],
}


@pytest.mark.parametrize("alpha", [None, torch.full((1, 1, 16, 24), 0.5)], ids=["opaque", "alpha"])
@pytest.mark.parametrize("kind", [("png", 8), ("png", 16), ("jpeg", 8), ("webp", 8), ("tiff", 8), ("tiff", 16)])
def test_recipes_round_trip(kind: tuple[str, int], alpha: Tensor | None, tmp_path: Path) -> None:
    data = images.encode(smooth(16, 24), kind[0], bits=kind[1], alpha=alpha, recipe=RECIPE)
    assert images.read_recipe(data) == RECIPE
    assert images.read(data).recipe == RECIPE
    (tmp_path / "picture").write_bytes(data)
    assert images.read_recipe(tmp_path / "picture") == RECIPE


def test_the_software_is_named_without_asking() -> None:
    assert images.read_recipe(images.encode(smooth(8, 8), recipe={"seed": 1})) == {
        "seed": 1,
        "software": "pyramid-style",
    }


def png_with_text(text: str, *, late: bool = False, packed: bool = False) -> bytes:
    data = pillow_bytes(Image.new("RGB", (16, 16)), "PNG")
    body = text.encode()
    field = chunk(
        b"iTXt",
        b"pyramid-style:recipe\0" + (b"\1\0\0\0" + zlib.compress(body) if packed else b"\0\0\0\0" + body),
    )
    return data[:-12] + field + data[-12:] if late else data[:33] + field + data[33:]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_recipe_survives_what_png_optimisers_do(late: bool, packed: bool) -> None:
    assert images.read_recipe(png_with_text(json.dumps(RECIPE), late=late, packed=packed)) == RECIPE


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_other_pictures_carry_no_recipe(format: str) -> None:
    data = pillow_bytes(Image.new("RGB", (16, 16)), format)
    assert images.read(data).recipe is None
    with pytest.raises(RecipeError, match="no recipe"):
        images.read_recipe(data)


def test_other_peoples_comments_are_not_recipes() -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0" + b'{"software": "a camera"}'
    with pytest.raises(RecipeError, match="no recipe"):
        images.read_recipe(pillow_bytes(Image.new("RGB", (16, 16)), "JPEG", exif=exif))
    with pytest.raises(RecipeError, match="no recipe"):
        images.read_recipe(tiff_bytes(rgb8(), photometric="rgb", description="holiday"))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECIPE)[:-5],
        '["pyramid-style"]',
        '{"author": "pyramid-style"}',
        '{"software": "pyramid-style", "seed": NaN}',
        '{"software": "pyramid-style", "seed": ' + "[" * 100_000,
        '{"software": "pyramid-style", "seed": ' + "9" * 10_000 + "}",
        '{"software": "pyramid-style", "notes": "' + "x" * 300_000 + '"}',
    ],
    ids=["cut", "list", "other key", "nan", "deep", "huge number", "huge"],
)
def test_damaged_recipes_are_refused_but_the_picture_is_read(text: str) -> None:
    data = png_with_text(text)
    with pytest.raises(RecipeError, match="damaged"):
        images.read_recipe(data)
    assert images.read(data).recipe is None


def test_a_packed_recipe_that_would_burst_is_refused() -> None:
    bomb = png_with_text('{"software": "pyramid-style", "x": "' + " " * 50_000_000 + '"}', packed=True)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(RecipeError):
            images.read_recipe(bomb)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, torch.zeros(1), Path("x")])
def test_a_recipe_that_is_not_json_is_a_programming_error(value: object) -> None:
    with pytest.raises(TypeError, match="recipe"):
        images.encode(smooth(8, 8), recipe={"value": value})


@pytest.mark.parametrize(
    ("format", "length"), [("jpeg", 70_000), ("png", 300_000), ("webp", 300_000), ("tiff", 300_000)]
)
def test_a_recipe_that_does_not_fit_is_refused(format: str, length: int) -> None:
    with pytest.raises(RecipeError, match="bytes"):
        images.encode(smooth(8, 8), format, recipe={"notes": "x" * length})


def test_the_longest_recipe_that_a_jpeg_takes_is_read_back() -> None:
    room = 65_000 - len(json.dumps({"notes": "", "software": "pyramid-style"}))
    recipe = {"notes": "x" * room, "software": "pyramid-style"}
    assert images.read_recipe(images.encode(smooth(8, 8), "jpeg", recipe=recipe)) == recipe


def test_nothing_of_the_input_s_metadata_reaches_the_output() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "SECRET-ARTIST"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = b"ASCII\0\0\0SECRET-PLACE"
    texts = PngInfo()
    texts.add_text("Comment", "SECRET-TEXT")
    image = Image.new("RGB", (16, 16), "teal")
    sources = [
        pillow_bytes(image, "JPEG", exif=exif, comment=b"SECRET-COMMENT", xmp=b"SECRET-XMP"),
        pillow_bytes(image, "PNG", exif=exif, pnginfo=texts),
        pillow_bytes(image, "WEBP", exif=exif, xmp=b"SECRET-XMP"),
    ]
    for source in sources:
        assert b"SECRET" in source
        picture = images.read(source)
        for format in ("png", "jpeg", "webp", "tiff"):
            assert b"SECRET" not in images.encode(picture.pixels, format, alpha=picture.alpha, recipe=RECIPE)


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def refused(source: images.Source, cause: str, **options: Any) -> ImageError:
    """Asserts that reading fails with this cause, and that there is something to be done about it."""
    with pytest.raises(ImageError, match=cause) as failure:
        images.read(source, **options)
    assert failure.value.remedy
    return failure.value


ENCODINGS: dict[str, Callable[[], bytes]] = {
    "png": lambda: images.encode(noise(40, 60)),
    "png, 16 bits": lambda: images.encode(noise(40, 60), bits=16),
    "jpeg": lambda: images.encode(noise(40, 60), "jpeg"),
    "webp": lambda: images.encode(noise(40, 60), "webp"),
    "tiff": lambda: images.encode(noise(40, 60), "tiff"),
    "tiff, 16 bits": lambda: images.encode(noise(40, 60), "tiff", bits=16),
    "tiff, raw": lambda: tiff_bytes(deep(3), photometric="rgb"),
    "tiff, float": lambda: tiff_bytes(noise(20, 30, 1)[0, 0].numpy()),
    "tiff, jpeg": lambda: pillow_bytes(Image.fromarray(rgb8()), "TIFF", compression="jpeg"),
    "gif": lambda: pillow_bytes(Image.fromarray(rgb8()), "GIF"),
    "bmp": lambda: pillow_bytes(Image.fromarray(rgb8()), "BMP"),
    "cmyk": lambda: pillow_bytes(Image.fromarray(rgb8(channels=4), "CMYK"), "JPEG"),
    "heic": lambda: heic_bytes(Image.fromarray(rgb8(64, 64))),
}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ENCODINGS)
def test_truncated_files(kind: str, share: float) -> None:
    data = ENCODINGS[kind]()
    refused(data[: max(16, int(share * len(data)))], "damaged|has no pixels")


@pytest.mark.parametrize("kind", ENCODINGS)
def test_only_a_signature(kind: str) -> None:
    refused(ENCODINGS[kind]()[:12], "damaged|not an image")


STRANGERS = {
    "text": b"Dear diary, this is not a picture.",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"/>',
    "html": b"<!doctype html><title>404</title>",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
    "zip": b"PK\x03\x04" + bytes(60),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "photoshop": b"8BPS\0\1" + bytes(60),
    "film": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_not_an_image(kind: str) -> None:
    error = refused(STRANGERS[kind], "not an image")
    assert "JPEG, PNG" in error.remedy


def test_a_name_does_not_make_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(STRANGERS["html"])
    assert "photo.png" in refused(path, "not an image").cause
    path.write_bytes(ENCODINGS["jpeg"]())
    assert images.read(str(path)).format == "JPEG"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refused(b"", "empty")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty")
    refused(tmp_path / "nowhere.png", "does not exist")
    refused(tmp_path / "nowhere" / "at all.png", "does not exist")
    refused(tmp_path, "not a file")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a file")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(ENCODINGS["png"]())

    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "cannot be read")


def bare_png(width: int, height: int, depth: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def patched(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    start = data.index(marker) + offset
    return data[:start] + value + data[start + len(value) :]


def jpeg_of(width: int, height: int) -> bytes:
    return patched(ENCODINGS["jpeg"](), b"\xff\xc0", 5, struct.pack(">HH", height, width))


def gif_of(width: int, height: int) -> bytes:
    return patched(ENCODINGS["gif"](), b"GIF8", 6, struct.pack("<HH", width, height))


def bmp_of(width: int, height: int) -> bytes:
    return patched(ENCODINGS["bmp"](), b"BM", 18, struct.pack("<ii", width, height))


def webp_of(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return patched(images.encode(noise(16, 16), "webp"), b"VP8X", 12, size)


def tiff_of(width: int, height: int, **options: Any) -> bytes:
    data = tiff_bytes(rgb8(), photometric="rgb", **options)
    data = patched(data, b"\0\1\4\0\1\0\0\0", 8, struct.pack("<I", width))
    return patched(data, b"\1\1\4\0\1\0\0\0", 8, struct.pack("<I", height))


def heic_of(width: int, height: int) -> bytes:
    return patched(ENCODINGS["heic"](), b"ispe", 8, struct.pack(">II", width, height))


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: bare_png(60_000, 60_000),
    "png, 16 bits": lambda: bare_png(60_000, 60_000, depth=16),
    "png, widest": lambda: bare_png(2**31 - 1, 2**31 - 1),
    "jpeg": lambda: jpeg_of(65_000, 65_000),
    "gif": lambda: gif_of(65_535, 65_535),
    "bmp": lambda: bmp_of(60_000, 60_000),
    "webp": lambda: webp_of(16_383, 16_383),
    "tiff": lambda: tiff_of(60_000, 60_000),
    "heic": lambda: heic_of(20_000, 20_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = BOMBS[kind]()
    assert len(bomb) < 20_000
    monkeypatch.setattr(images, "decode", lambda file: pytest.fail("decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    if kind == "webp":  # Pillow before 12 itself takes offence at a canvas that is larger than its frame
        refused(bomb, "limit|megapixels|header is damaged")
    else:
        assert "Scale it down" in refused(bomb, "limit|megapixels").remedy


def test_bombs_cost_no_memory() -> None:
    bombs = [BOMBS[kind]() for kind in BOMBS if kind != "heic"]
    bombs.append(ENCODINGS["tiff"]()[:200])  # of which tifffile would warn on the terminal
    script = (
        "import pickle, resource, sys\n"
        "from core import images\n"
        "from core.errors import ImageError\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "images.read(images.encode(images.torch.rand(1, 3, 16, 16)))\n"
        "before = used()\n"
        "for bomb in pickle.load(sys.stdin.buffer):\n"
        "    try: images.read(bomb)\n"
        "    except ImageError: pass\n"
        "    else: raise SystemExit('accepted')\n"
        "print(used() - before)\n"
    )
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(bombs), capture_output=True, cwd=root, check=True
    )
    assert result.stderr == b""
    assert int(result.stdout) < 30_000  # KiB; one of these pictures would take 10 GB


def test_a_tiff_whose_jpeg_claims_more_than_its_strip() -> None:
    data = pillow_bytes(Image.fromarray(rgb8()), "TIFF", compression="jpeg")
    refused(patched(data, b"\xff\xc0", 5, b"\xff\x00\xff\x00"), "damaged")


def test_a_tiff_whose_tiles_dwarf_the_picture() -> None:
    data = tiff_bytes(deep(3), photometric="rgb", tile=(32, 32))
    data = patched(data, struct.pack("<HHII", 322, 4, 1, 32)[:8], 8, struct.pack("<I", 65_536))
    data = patched(data, struct.pack("<HHII", 323, 4, 1, 32)[:8], 8, struct.pack("<I", 65_536))
    assert "tiles" in str(refused(data, "damaged").__cause__)


def test_a_tiff_with_two_widths() -> None:
    refused(patched(tiff_of(30, 20), b"\0\1\4\0\1\0\0\0", 4, b"\2\0\0\0"), "header is damaged")


def test_tiffs_that_would_be_misread_are_refused() -> None:
    refused(tiff_bytes(deep(3).astype(np.int16), photometric="rgb"), "int16")
    refused(tiff_bytes(deep(3), photometric="cielab"), "CIELAB")
    refused(tiff_bytes(deep(3), photometric="rgb", compression="jpeg2000"), "JPEG")
    refused(tiff_bytes(deep(1)[..., 0].astype(np.float32), photometric="minisblack"), "65")
    refused(tiff_bytes(np.full((20, 30), np.nan, np.float32), photometric="minisblack"), "nan")


def test_the_pixel_limit_is_exact_and_the_remedy_fits_it() -> None:
    data = pillow_bytes(Image.new("RGB", (50, 30)), "PNG")
    assert images.read(data, max_pixels=1500).pixels.shape == (1, 3, 30, 50)
    error = refused(data, "50 × 30", max_pixels=1499)
    width, height = (int(word) for word in error.remedy.replace(",", "").split() if word.isdigit())
    assert 1400 < width * height <= 1499
    with pytest.raises(ImageError, match="limit"):
        images.probe(data, max_pixels=1499)


def test_our_limit_rules_even_beyond_pillow_s_own() -> None:
    """Pillow alone refuses beyond 178 megapixels; a caller may allow more."""
    header = images.probe(bare_png(16_000, 12_000), max_pixels=200_000_000)
    assert (header.height, header.width) == (12_000, 16_000)


@pytest.mark.parametrize("sideways", [False, True])
def test_the_longest_shape_is_20_to_1(sideways: bool) -> None:
    def bar(length: int) -> bytes:
        return pillow_bytes(Image.new("RGB", (10, length) if sideways else (length, 10)), "PNG")

    assert images.read(bar(200)).pixels.numel() == 6000
    assert "Crop" in refused(bar(201), "20:1").remedy


def test_the_smallest_picture_is_8_by_8() -> None:
    assert images.read(pillow_bytes(Image.new("RGB", (8, 8)), "PNG")).pixels.shape == (1, 3, 8, 8)
    refused(pillow_bytes(Image.new("RGB", (20, 7)), "PNG"), "only 20 × 7")


@pytest.mark.parametrize("make", [bare_png, gif_of, bmp_of, tiff_of, jpeg_of])
@pytest.mark.parametrize("size", [(0, 20), (20, 0), (0, 0)])
def test_no_pixels_at_all(make: Callable[[int, int], bytes], size: tuple[int, int]) -> None:
    data = make(*size)
    if make is gif_of:  # a GIF's screen may be smaller than its frame, so the frame must be empty as well
        data = patched(data, b",\0\0\0\0", 5, struct.pack("<HH", *size))
    refused(data, "no pixels")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([kind for kind in ENCODINGS if kind != "heic"]), st.integers(0, 2**32))
def test_damage_gives_a_picture_or_an_error_with_a_remedy(kind: str, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(ENCODINGS[kind]())
    for _ in range(chance.choice((1, 3, 10))):
        data[chance.randrange(len(data) if chance.random() < 0.5 else 200)] = chance.randrange(256)
    try:
        picture = images.read(bytes(data), max_pixels=1_000_000)
    except ImageError as error:
        assert error.cause
        assert error.remedy
    else:
        assert picture.pixels.isfinite().all()
        assert picture.pixels.min() >= 0
        assert picture.pixels.max() <= 1


def test_heic_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "HEIF" not in images.formats().read
    error = refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC")
    assert "pip install 'pyramid-style[heic]'" in error.remedy


def test_formats() -> None:
    pytest.importorskip("pillow_heif", reason="HEIC is an extra")
    assert set(images.formats().read) == {"JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "HEIF"}
    assert set(images.formats().write) == {"JPEG", "PNG", "WEBP", "TIFF"}


# ── Encoding's arguments ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "format"),
    [("PNG", "PNG"), (".jpg", "JPEG"), ("jpeg", "JPEG"), (".TIF", "TIFF"), ("tiff", "TIFF"), ("webp", "WEBP")],
)
def test_formats_go_by_their_usual_names(name: str, format: str) -> None:
    assert images.probe(images.encode(smooth(8, 8), name)).format == format


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_sixteen_bits_need_a_format_that_has_them(format: str) -> None:
    with pytest.raises(ImageError, match="8 bits"):
        images.encode(smooth(8, 8), format, bits=16)


@pytest.mark.parametrize(("format", "side"), [("webp", 16_384), ("jpeg", 65_501)])
def test_formats_with_a_longest_side(format: str, side: int) -> None:
    with pytest.raises(ImageError, match=str(side)):
        images.encode(torch.zeros(1, 3, 8, side), format)


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (torch.zeros(3, 8, 8), {}),
        (torch.zeros(1, 4, 8, 8), {}),
        (torch.zeros(1, 3, 0, 8), {}),
        (torch.zeros(1, 3, 8, 8), {"bits": 12}),
        (torch.zeros(1, 3, 8, 8), {"alpha": torch.zeros(1, 1, 8, 9)}),
        (torch.full((1, 3, 8, 8), math.nan), {}),
        (torch.zeros(1, 3, 8, 8), {"alpha": torch.full((1, 1, 8, 8), math.inf)}),
    ],
)
def test_programming_errors_are_not_user_errors(pixels: Tensor, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pixels|bits|alpha|finite"):
        images.encode(pixels, **options)


# ── Saving ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "format"), [("a.png", "PNG"), ("b.JPG", "JPEG"), ("c.jpeg", "JPEG"), ("d.webp", "WEBP"), ("e.tif", "TIFF")]
)
def test_the_suffix_names_the_format(name: str, format: str, tmp_path: Path) -> None:
    images.save(tmp_path / name, smooth(16, 16), recipe=RECIPE)
    picture = images.read(tmp_path / name)
    assert (picture.format, picture.recipe) == (format, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_saving_passes_everything_on(tmp_path: Path) -> None:
    pixels, alpha = noise(16, 16), noise(16, 16, 1).clamp(min=0.01)
    images.save(str(tmp_path / "a.tiff"), pixels, bits=16, alpha=alpha)
    picture = images.read(tmp_path / "a.tiff")
    assert torch.equal(picture.pixels, images.quantize(pixels, 16))
    assert torch.equal(torch.as_tensor(picture.alpha), images.quantize(alpha, 16))
    images.save(tmp_path / "poor.jpg", pixels, quality=10)
    images.save(tmp_path / "good.jpg", pixels)
    assert (tmp_path / "poor.jpg").stat().st_size < (tmp_path / "good.jpg").stat().st_size


def test_saving_replaces_the_file_and_leaves_a_link_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    images.save(link, smooth(16, 16))
    assert link.is_symlink()
    assert images.probe(target).format == "PNG"


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    images.save(tmp_path / "a.png", smooth(8, 8))
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def unsaved(path: Path, cause: str) -> None:
    with pytest.raises(ImageError, match=cause) as failure:
        images.save(path, smooth(8, 8))
    assert failure.value.remedy


def test_places_where_nothing_can_be_saved(tmp_path: Path) -> None:
    unsaved(tmp_path / "nowhere" / "a.png", "folder does not exist")
    (tmp_path / "file").touch()
    unsaved(tmp_path / "file" / "a.png", "folder does not exist")
    (tmp_path / "folder.png").mkdir()
    unsaved(tmp_path / "folder.png", "is a folder")
    unsaved(tmp_path / "a.gif", "not a format that can be written")
    unsaved(tmp_path / "a", "no suffix")
    unsaved(tmp_path / ("x" * 300 + ".png"), "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize(
    ("number", "cause"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EACCES, "may not"), (errno.EIO, "error")],
)
def test_a_failure_midway_leaves_the_old_file(
    number: int, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    unsaved(path, cause)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.png"]


def test_an_interruption_midway_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        images.save(path, smooth(8, 8))
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.png"]
