"""Devices are found by name, refused with a remedy, and measured against what the machine says of itself."""

from pathlib import Path

import psutil
import pytest
import torch

from core import devices
from core.errors import DeviceError

CPU = torch.device("cpu")


def refusal(name: str) -> str:
    with pytest.raises(DeviceError) as caught:
        devices.resolve(name)
    assert "auto" in caught.value.remedy
    return str(caught.value)


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_a_cpu_is_always_there() -> None:
    assert devices.resolve("cpu") == CPU


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str) -> None:
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert devices.resolve() == devices.resolve("auto") == torch.device(expected)


def test_cuda_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2)
    assert devices.resolve("cuda") == torch.device("cuda", 0)
    assert devices.resolve("cuda:1") == torch.device("cuda", 1)
    assert "no CUDA device 2 on this machine: it has 2" in refusal("cuda:2")


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert "PyTorch finds none" in refusal("cuda")
    assert "no CUDA device 3" in refusal("cuda:3")
    assert "MPS" in refusal("mps")


@pytest.mark.parametrize("name", ["toaster", "", "cuda:x", "cuda:-1", "cpu cpu"])
def test_what_is_no_device_is_refused(name: str) -> None:
    assert "is not a device" in refusal(name)


@pytest.mark.parametrize("name", ["meta", "xla"])
def test_a_device_that_nobody_tested_is_refused(name: str) -> None:
    assert "not supported" in refusal(name)


def test_precision_is_what_was_asked_for() -> None:
    assert devices.dtype("float32", CPU) == torch.float32
    assert devices.dtype("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_16_bit_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, fast: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda device: fast)
    assert devices.dtype("auto", CPU) == expected


def test_the_processors_flags_tell_whether_16_bit_is_fast() -> None:
    listing = Path("/proc/cpuinfo")
    flags = listing.read_text().partition("\nflags")[2].partition("\n")[0].split() if listing.is_file() else []
    if not flags:
        pytest.skip("this machine doesn't list its processor's flags")
    assert devices.has_fast_bfloat16(CPU) == bool({"avx512_bf16", "amx_bf16"} & set(flags))


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_compute_16_bit_fast_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.has_fast_bfloat16(torch.device("cuda", 0)) == fast


def test_mps_is_given_float32() -> None:
    assert devices.dtype("auto", torch.device("mps")) == torch.float32


def test_peak_memory_never_falls_and_shows_what_was_held() -> None:
    process = psutil.Process()
    before = devices.peak_memory_bytes(CPU)
    assert before >= 0.9 * process.memory_info().rss
    held = torch.ones(max(0, before - process.memory_info().rss) // 4 + 30_000_000)
    during = devices.peak_memory_bytes(CPU)
    assert during >= before + 60_000_000
    del held
    assert devices.peak_memory_bytes(CPU) >= during


def test_held_memory_is_the_processs() -> None:
    before = devices.held_memory_bytes(CPU)
    held = torch.ones(30_000_000)
    assert devices.held_memory_bytes(CPU) == pytest.approx(before + 4 * held.numel(), rel=0.1)


def test_free_memory_is_part_of_the_machines() -> None:
    total = devices.total_memory_bytes(CPU)
    assert total == psutil.virtual_memory().total
    assert 0 < devices.free_memory_bytes(CPU) < total


def test_a_device_has_a_name_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{torch.get_num_threads()} threads" in devices.describe(CPU)
    assert devices.describe(torch.device("mps")) == "Apple GPU"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert devices.describe(torch.device("cuda", 0)) == "NVIDIA H200"
