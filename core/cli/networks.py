"""The commands `networks` and `fetch`."""

import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from core import weights
from core.cli.tables import print_table
from core.weights import NetworkStatus


def list_them(*, as_json: bool) -> int:
    """Prints which networks are on this machine, and how to get the others; returns the exit code.

    Raises:
        WeightsError: A file of weights can't be read.
    """
    found = weights.status()
    if as_json:
        print(json.dumps([_plain(status) for status in found], indent=2))
        return 0
    print_table(
        ("network", "here", "size", "SHA-256", "where it is, or how to get it"),
        [_row(status) for status in found],
    )
    print(f"auto takes {weights.choose('auto')}. The cache directory is {weights.cache_dir()}")
    return 0


def fetch(network: str) -> int:
    """Brings a network to this machine and prints where it is; returns the exit code.

    Raises:
        WeightsError: See `core.weights.fetch`.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    times = (TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"fetching {network}", total=None)
        path = weights.fetch(network, progress=lambda done, total: bar.update(task, completed=done, total=total))
    print(f"{network}: {path}")
    return 0


def _plain(status: NetworkStatus) -> dict[str, Any]:
    return {
        "network": status.network,
        "present": status.present,
        "path": None if status.path is None else str(status.path),
        "sha256": status.sha256,
        "size_bytes": status.size_bytes,
        "how": status.how,
    }


def _row(status: NetworkStatus) -> tuple[str, ...]:
    if status.path is None or status.sha256 is None or status.size_bytes is None:
        return status.network, "no", "", "", status.how
    return status.network, "yes", f"{status.size_bytes / 1e6:.1f} MB", f"{status.sha256[:12]}…", str(status.path)
