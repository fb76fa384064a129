"""A run that was interrupted, as bytes: what it was, where it stood, and the optimiser's state."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors
import safetensors.torch
from torch import Tensor

from core import steering
from core.config import Precision
from core.errors import CheckpointError, RecipeError
from core.steering import Steer

_FORMAT = "pyramid-style checkpoint 1"
_STATE = "state."


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run stood.

    Attributes:
        fingerprint: Identifies the run's pictures, settings and weights.
        stage: The stage it was in.
        before: Iterations, evaluations and seconds that the earlier stages took.
        seconds: Spent in this stage.
        levels: Level, content, style and total variation of the last loss.
        start: The picture [1, 3, H, W] that the stage began with.
        state: The optimiser's.
        losses: Iteration and loss of every accepted step of this stage, by which it is told to have settled.
        steering: Changes of weights that had been made.
        precision: What the network computed in, as the settings would name it.
    """

    fingerprint: str
    stage: int
    before: tuple[int, int, float]
    seconds: float
    levels: tuple[tuple[int, float, float, float], ...]
    start: Tensor
    state: Mapping[str, Tensor]
    losses: tuple[tuple[int, float], ...]
    steering: tuple[Steer, ...] = ()
    precision: Precision = "auto"


def encode(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as a safetensors file."""
    numbers = {
        "fingerprint": checkpoint.fingerprint,
        "stage": checkpoint.stage,
        "before": checkpoint.before,
        "seconds": checkpoint.seconds,
        "levels": checkpoint.levels,
        "losses": checkpoint.losses,
        "steering": [steer.model_dump() for steer in checkpoint.steering],
        "precision": checkpoint.precision,
    }
    tensors = {"start": checkpoint.start} | {_STATE + key: value for key, value in checkpoint.state.items()}
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return safetensors.torch.save(plain, {"format": _FORMAT, "checkpoint": json.dumps(numbers)})


def decode(data: bytes, fingerprint: str) -> Checkpoint:
    """Reads a checkpoint of the run that `fingerprint` identifies.

    Raises:
        CheckpointError: The bytes are not a whole checkpoint, or of another run.
    """
    try:
        tensors = safetensors.torch.load(data)
        numbers = json.loads(_metadata(data)["checkpoint"])
        found = Checkpoint(
            fingerprint=numbers["fingerprint"],
            stage=int(numbers["stage"]),
            before=tuple(numbers["before"]),
            seconds=float(numbers["seconds"]),
            levels=tuple(tuple(level) for level in numbers["levels"]),
            start=tensors["start"],
            losses=tuple((int(iteration), float(loss)) for iteration, loss in numbers["losses"]),
            steering=steering.parse(numbers["steering"]),
            precision=numbers["precision"],
            state={key.removeprefix(_STATE): value for key, value in tensors.items() if key.startswith(_STATE)},
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecipeError) as error:
        raise CheckpointError(f"the checkpoint can't be read: {error}", "Start the run again without it") from None
    if found.fingerprint != fingerprint:
        raise CheckpointError(
            "the checkpoint belongs to a run with other pictures, settings or weights",
            "Give the same ones, or start again without it",
        )
    return found


def _metadata(data: bytes) -> dict[str, str]:
    """The header's own words; safetensors reads them only from a file on disk."""
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
