"""The frames of a film: evenly spread, bounded, and kept over restarts."""

from pathlib import Path

import pytest

from core.studio.executors.frames import Frames


def picture(number: int) -> bytes:
    return b"frame %d" % number


def offered(frames: Frames, iterations: range) -> list[int]:
    """Offers pictures of iterations; which of them were made."""
    made = []
    for number in iterations:

        def make(number: int = number) -> bytes:
            made.append(number)
            return picture(number)

        frames.offer(number, make)
    return made


def test_a_short_film_has_every_frame_and_a_long_one_evenly_spread_ones() -> None:
    short = Frames(most=8)
    offered(short, range(8))
    assert short.pictures == [picture(number) for number in range(8)]
    long = Frames(most=8)
    made = offered(long, range(1000))
    assert long.pictures == [picture(number) for number in range(0, 1000, 128)]
    assert len(made) < 80, "what is not taken is not made either"


def test_frames_go_on_where_they_were_kept(tmp_path: Path) -> None:
    whole, first, second = Frames(most=8), Frames(most=8), Frames(most=8)
    offered(whole, range(100))
    offered(first, range(50))
    (tmp_path / "kept").write_bytes(first.encode())
    second.restore(tmp_path / "kept")
    offered(second, range(40, 100))  # the checkpoint was older than the frames
    assert second.pictures == whole.pictures


@pytest.mark.parametrize("data", [None, b"", b"not an archive"])
def test_frames_that_are_gone_or_damaged_mean_a_shorter_film(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "kept").write_bytes(data)
    frames = Frames()
    frames.restore(tmp_path / "kept")
    offered(frames, range(3))
    assert len(frames.pictures) == 3
