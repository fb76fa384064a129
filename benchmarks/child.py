"""One case of a benchmark in a process of its own, so that nothing of the case before is left in it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core import devices

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def run(
    module: str, case: "DataclassInstance", arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], int]:
    """What `python -m module --one CASE` answers with as JSON, and its peak of memory in bytes.

    Args:
        module: With a `main` that understands `--one`.
        case: Given to it as JSON.
        arguments: Given to it besides.
        environment: Variables that it has besides this process's.

    Raises:
        SystemExit: It failed; what it had to say stands on stderr.
    """
    command = [sys.executable, "-m", module, "--one", json.dumps(asdict(case)), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | dict(environment or {})
    ) as child:
        assert child.stdout is not None
        answer = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{case}: ended with {child.returncode}")
    return json.loads(answer), devices.peak_of(used)
