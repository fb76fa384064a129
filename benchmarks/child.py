"""One case of a benchmark in a process of its own, so that nothing of the case before is left in it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core import devices

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def run(
    module: str, case: "DataclassInstance", arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What `python -m module --one CASE` answers with as JSON.

    Args:
        module: With a `main` that understands `--one`.
        case: Given to it as JSON.
        arguments: Given to it besides.
        environment: Variables that it has besides this process's.

    Raises:
        SystemExit: It failed; what it had to say stands on stderr.
    """
    command = [sys.executable, "-m", module, "--one", json.dumps(asdict(case)), *arguments]
    variables = os.environ | dict(environment or {})
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=variables, check=False)
    if ended.returncode:
        raise SystemExit(f"{case}: ended with {ended.returncode}")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def own_peak_bytes() -> int:
    """The most memory that this process held, without what its parent held when it was started.

    Linux counts that in what `getrusage` tells; the status file there begins with the program.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return devices.peak_memory_bytes(torch.device("cpu"))
    return int(status.read_text(encoding="ascii", errors="replace").partition("VmHWM:")[2].split()[0]) * 1024
