"""What has to be said to PyTorch before its first tensor; asked by the front doors, never on import."""

import os


def prepare() -> None:
    """Lets PyTorch ask for huge pages on Linux, where it computes on the CPU; what the user has set stands.

    An evaluation allocates a gibibyte and frees it again; in pages of 4 KiB the faults alone took a tenth of its time.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
