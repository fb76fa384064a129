"""Which device computes, in which precision, and how much memory was used at most."""

import resource
import sys

import psutil
import torch

from core.config import Precision
from core.errors import DeviceError


def resolve(name: str = "auto") -> torch.device:
    """The device called `name`: auto, cpu, cuda, cuda:1, mps; auto prefers CUDA, then MPS.

    Raises:
        DeviceError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"'{name}' is not a device", "Use auto, cpu, cuda, cuda:1 or mps") from None
    _require(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _require(device: torch.device) -> None:
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            have = f"it has {count}" if count else "PyTorch finds none"
            raise DeviceError(
                f"there is no CUDA device {device.index or 0} on this machine: {have}", "Use --device auto"
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("there is no MPS device on this machine", "Use --device auto")
    elif device.type != "cpu":
        raise DeviceError(f"the device type '{device.type}' is not supported", "Use auto, cpu, cuda or mps")


def dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of weights and activations; `auto` is bfloat16 where the device multiplies it fast, else float32."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: on CUDA the device's allocations, else the whole process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory_bytes(device: torch.device) -> int:
    """Memory that a run could take now, without making the machine swap."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def total_memory_bytes(device: torch.device) -> int:
    """Memory that the device has; for MPS and the CPU, the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def held_memory_bytes(device: torch.device) -> int:
    """Memory held now: the device's allocations on CUDA, else the whole process's."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def describe(device: torch.device) -> str:
    """The device's name for people and for estimates: "NVIDIA H200", or the processor's and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
