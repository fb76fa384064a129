"""Films are read back with another program's decoder: every frame, its size, its colours and how long it is shown."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from core import film
from core.film import FRAMES_PER_SECOND, LAST_FRAME_SECONDS, Film, FilmError, frame_size

SUFFIXES = [".mp4", ".webp", ".gif"]


def grey(value: float, size: tuple[int, int] = (48, 70)) -> Tensor:
    return torch.full((1, 3, *size), value)


def colour(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])[None, :, None, None].expand(1, 3, 48, 70)


def read(path: Path) -> list[tuple[float, torch.Tensor]]:
    """Seconds and pixels [H, W, 3] of every frame that is told apart."""
    if path.suffix == ".mp4":
        av = pytest.importorskip("av")
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return [(1 / FRAMES_PER_SECOND, torch.from_numpy(frame)) for frame in frames]
    found = []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            found.append((image.info["duration"] / 1000, pixels.view(image.height, image.width, 3)))
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_come_back_in_order_and_the_last_is_held(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    path = tmp_path / f"film{suffix}"
    values = [0.1, 0.5, 0.9]
    with Film(path, (48, 70)) as reel:
        for value in values:
            reel.add(grey(value, (24, 35)))  # an earlier stage is smaller
    found = read(path)
    assert {tuple(frame.shape) for _, frame in found} == {(48, 70, 3)}
    brightness = [float(frame.float().mean()) / 255 for _, frame in found]
    assert brightness[:3] == pytest.approx(values, abs=0.02)
    assert brightness[-1] == pytest.approx(0.9, abs=0.02)
    seconds = sum(duration for duration, _ in found)
    assert seconds == pytest.approx(2 / FRAMES_PER_SECOND + LAST_FRAME_SECONDS, abs=0.15)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rgb", [(0.8, 0.2, 0.2), (0.1, 0.6, 0.3), (0.2, 0.3, 0.9)])
def test_colours_come_back(tmp_path: Path, suffix: str, rgb: tuple[float, float, float]) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    path = tmp_path / f"film{suffix}"
    with Film(path, (48, 70)) as reel:
        reel.add(colour(*rgb))
    (_, frame), *_ = read(path)
    assert (frame.float().mean((0, 1)) / 255).tolist() == pytest.approx(rgb, abs=0.03)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((256, 384), 1280, (256, 384)),
        ((281, 257), 1280, (280, 256)),
        ((2048, 3072), 1280, (852, 1280)),
        ((5120, 256), 640, (640, 32)),
        ((256, 5120), 12, (2, 12)),
    ],
)
def test_sides_are_even_and_bounded(size: tuple[int, int], longest: int, expected: tuple[int, int]) -> None:
    assert frame_size(size, longest) == expected


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_an_interrupted_film_is_whole_and_an_empty_one_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    path = tmp_path / f"film{suffix}"
    with pytest.raises(KeyboardInterrupt), Film(path, (48, 70)) as reel:
        reel.add(grey(0.5))
        raise KeyboardInterrupt
    assert read(path)
    path.unlink()
    with Film(path, (48, 70)):
        pass
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FilmError, match="what film"):
        film.check(tmp_path / "film.avi")


def test_without_pyav_the_remedy_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FilmError, match="PyAV") as caught:
        Film(tmp_path / "film.mp4", (48, 70))
    assert ".webp" in caught.value.remedy and "pip install" in caught.value.remedy


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_not_there_is_told_at_once(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    with pytest.raises(FilmError, match="can't be written"):
        Film(tmp_path / "none" / f"film{suffix}", (48, 70))
