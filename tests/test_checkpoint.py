"""A checkpoint comes back bit for bit, and nothing but a whole one of the same run is taken."""

import json
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import checkpoint as checkpoints
from core.checkpoint import Checkpoint
from core.errors import CheckpointError

FINGERPRINT = "a" * 64


def some_checkpoint() -> Checkpoint:
    draw = torch.Generator().manual_seed(0)
    return Checkpoint(
        fingerprint=FINGERPRINT,
        stage=1,
        before=(60, 63, 12.75),
        seconds=1.5,
        levels=((0, 0.125, 1e-30, 0.0), (1, 0.1, 2.5, 3.0)),
        start=torch.rand(1, 3, 5, 7, generator=draw),
        losses=((0, 0.5), (1, 0.25)),
        state={
            "point": torch.randn(1, 3, 5, 7, generator=draw).contiguous(memory_format=torch.channels_last),
            "steps": torch.randn(2, 105, generator=draw).bfloat16(),
            "none yet": torch.empty(0, 105),
            "order": torch.tensor([3, 0, 1]),
            "products": torch.randn(4, 4, generator=draw, dtype=torch.float64),
            "special": torch.tensor([0.1, -0.0, 1e-45, float("inf")]),
        },
    )


WHOLE = checkpoints.encode(some_checkpoint())


def refusal(data: bytes, fingerprint: str = FINGERPRINT) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        checkpoints.decode(data, fingerprint)
    assert caught.value.remedy
    return caught.value


def test_a_checkpoint_comes_back_bit_for_bit() -> None:
    before, after = some_checkpoint(), checkpoints.decode(WHOLE, FINGERPRINT)
    for name in {field.name for field in fields(Checkpoint)} - {"start", "state"}:
        assert getattr(after, name) == getattr(before, name)
    assert torch.equal(after.start, before.start)
    assert after.state.keys() == before.state.keys()
    for key, value in before.state.items():
        assert after.state[key].dtype == value.dtype and after.state[key].shape == value.shape
        assert torch.equal(after.state[key], value)


def test_a_view_is_written_as_what_it_shows() -> None:
    memory = torch.arange(40.0).reshape(10, 4)
    data = checkpoints.encode(replace(some_checkpoint(), state={"steps": memory[2:5]}))
    memory.zero_()
    assert checkpoints.decode(data, FINGERPRINT).state["steps"].tolist() == torch.arange(8.0, 20).reshape(3, 4).tolist()


def test_what_needs_a_gradient_can_be_written() -> None:
    data = checkpoints.encode(replace(some_checkpoint(), start=torch.ones(1, 3, 2, 2, requires_grad=True)))
    assert not checkpoints.decode(data, FINGERPRINT).start.requires_grad


def test_a_checkpoint_of_another_run_is_refused() -> None:
    error = refusal(WHOLE, "b" * 64)
    assert "other pictures, settings or weights" in error.cause


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 0.5, 0.9, -1])
def test_a_checkpoint_cut_short_is_refused(length: float) -> None:
    cut = int(length * len(WHOLE)) if isinstance(length, float) else length
    assert "can't be read" in refusal(WHOLE[:cut]).cause


def test_a_checkpoint_with_more_at_its_end_is_refused() -> None:
    refusal(WHOLE + b"\0")


@given(st.binary(max_size=200))
def test_no_bytes_are_anything_but_refused(data: bytes) -> None:
    refusal(data)


@given(at=st.integers(0, 400), value=st.integers(1, 255))
def test_a_damaged_header_is_refused_or_still_the_same_run(at: int, value: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[at] ^= value
    try:
        checkpoints.decode(bytes(damaged), FINGERPRINT)
    except CheckpointError as error:
        assert error.remedy


def edited(change: Callable[[dict[str, object]], object]) -> bytes:
    """A well-formed file whose own words were changed."""
    length = int.from_bytes(WHOLE[:8], "little")
    words = json.loads(WHOLE[8 : 8 + length])["__metadata__"]
    numbers = json.loads(words["checkpoint"])
    changed = change(numbers)
    words["checkpoint"] = json.dumps(numbers if changed is None else changed)
    return safetensors.torch.save(safetensors.torch.load(WHOLE), words)


@pytest.mark.parametrize(
    "change",
    [
        lambda numbers: {key: value for key, value in numbers.items() if key != "fingerprint"},
        lambda numbers: numbers.update(stage="first"),
        lambda numbers: numbers.update(stage=None),
        lambda numbers: numbers.update(before=3),
        lambda numbers: numbers.update(levels=[1, 2]),
        lambda numbers: numbers.update(levels=7),
        lambda numbers: [],
        lambda numbers: "nothing",
        lambda numbers: 3,
    ],
)
def test_words_that_make_no_sense_are_refused(change: Callable[[dict[str, object]], object]) -> None:
    refusal(edited(change))


def test_another_safetensors_file_is_refused() -> None:
    tensors = {"features.0.weight": torch.ones(2, 2)}
    refusal(safetensors.torch.save(tensors))
    refusal(safetensors.torch.save(tensors, {"origin": "elsewhere"}))
