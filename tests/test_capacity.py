"""The arithmetic of the capacity plan against operations that are really counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import capacity
from benchmarks.capacity import GPUS, LINE
from core import tiles
from core.features import Network
from core.tiles import Objective, Part

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


def convolved(network: Network, height: int, parts: list[Part]) -> int:
    """Multiplications and additions of the convolutions that these parts of a picture take, forward."""
    picture = torch.zeros(1, 3, height, 32)
    objective = Objective(lambda grams, _: torch.stack(list(grams.values())).sum(), LAYERS)
    counter = FlopCounterMode(display=False)
    with counter:
        for part in parts:
            first, last = tiles.rows_needed(network, LAYERS, part)
            tiles.Passes(network, picture[:, :, first:last], objective, part=part).statistics()
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])


def test_a_cut_costs_the_work_of_so_many_rows() -> None:
    network = Network(capacity.vgg_19("cpu"))
    whole = convolved(network, 512, [Part(0, 512, 512)])
    halves = convolved(network, 512, [Part(0, 256, 512), Part(256, 512, 512)])
    assert capacity.work_per_cut() == pytest.approx(512 * (halves - whole) / whole, rel=0.01)


def test_an_evaluation_is_two_passes_of_what_is_counted() -> None:
    network = Network(capacity.vgg_19("cpu"))
    forward = convolved(network, 256, [Part(0, 256, 256)]) / (256 * 32)
    grams = 8 * sum(channels**2 / 4**block for block, channels in enumerate((64, 128, 256, 512, 512)))
    assert capacity.operations_of(0) == pytest.approx((2 * forward + grams) * 256 * 384, rel=0.01)


@pytest.mark.parametrize("gpus", [2, 8])
def test_what_travels_is_counted_once_out_and_once_back(gpus: int) -> None:
    found = capacity.spread(GPUS[-1], 4, gpus, from_level=4)
    width, height = 6144, 4096
    ends, inner = 1, gpus - 2  # the run's own part doesn't travel; the last has an overlap on one side only
    rows = (gpus - 1) * height / gpus + (2 * inner + ends) * 70
    assert found.rows_bytes == pytest.approx(12 * width * rows)
    assert found.sums_bytes == (gpus - 1) * 4 * (64**2 + 128**2 + 256**2 + 2 * 512**2)
    assert found.messages == pytest.approx(2 * (found.rows_bytes + found.sums_bytes) / LINE + 2 * 2e-3)


def test_one_gpu_is_the_measure_and_many_are_never_free() -> None:
    alone, many = (capacity.spread(GPUS[-1], 5, gpus) for gpus in (1, 64))
    assert alone.speedup == alone.resident_speedup == 1 and alone.messages == 0
    assert many.total > many.messages + many.vectors > alone.vectors


def test_more_users_need_more_gpus_in_proportion() -> None:
    assert capacity.gpus_for(2000, GPUS[0]) == pytest.approx(2 * capacity.gpus_for(1000, GPUS[0]))


def test_a_level_that_does_not_fit_has_no_job() -> None:
    small, *_, large = GPUS
    assert capacity.job(small, 5) is None
    assert (found := capacity.job(large, 5)) and (found.width, found.height) == (12288, 8192)
