"""Pictures, films and checkpoints as files under the data directory, each written whole or not at all.

inputs/            content, style and starting pictures, masks
results/           finished pictures, and films of how they came to be
checkpoints/       where running jobs go on after a crash, with the frames of their films; named by job and attempt
previews/          the latest picture of every job; named by job
"""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from core.studio.jobs import Job, NoSuchJobError, StorageError, new_id

log = logging.getLogger(__name__)

Kind = Literal["inputs", "results", "checkpoints", "previews"]
KINDS: tuple[Kind, ...] = ("inputs", "results", "checkpoints", "previews")
_NAME = re.compile(r"[0-9a-f]{24}(-\d+)?(\.[a-z0-9]{1,5})?")
_PARTIAL = ".partial"
STRAY_SECONDS = 3600.0
"""A file that no row names may be about to be named; after an hour it isn't."""


def storage_error(error: OSError, place: Path) -> StorageError:
    """What went wrong with a file or directory, in a user's words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(f"there is no space left for files in {place}", "Free some space there and try again")
    reason = error.strerror or str(error)
    return StorageError(f"{place} can't be used: {reason}", "Check that the directory exists and may be written")


class Files:
    """Pictures and checkpoints under the data directory. Safe to use from any thread."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, kind: Kind, name: str) -> Path:
        """Where a file is. Only names of the studio's own making are understood; nothing leads out of the directory."""
        if not _NAME.fullmatch(name):
            raise NoSuchJobError("there is no such file")
        return self._root / kind / name

    def write(self, kind: Kind, name: str, data: bytes, *, sync: bool = True) -> None:
        """Writes a file whole or not at all.

        Args:
            kind: Its directory.
            name: Its name there.
            data: All of it.
            sync: Wait until it is on the disk, so that it survives a power cut.

        Raises:
            StorageError: No space, no permission.
        """
        path = self.path(kind, name)
        partial = path.with_name(f"{new_id()}{_PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
            if sync:
                _sync_directory(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise storage_error(error, path.parent) from error

    def read(self, kind: Kind, name: str) -> bytes:
        """The file's bytes.

        Raises:
            NoSuchJobError: It isn't there.
            StorageError: It can't be read.
        """
        path = self.path(kind, name)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise NoSuchJobError("this picture isn't there any more") from None
        except OSError as error:
            raise storage_error(error, path.parent) from error

    def remove(self, kind: Kind, name: str) -> None:
        """Removes a file, if it is there. One that can't be removed is left for `sweep`."""
        try:
            self.path(kind, name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s can't be removed: %s", self._root / kind / name, error)

    def sweep(self, kind: Kind, known: Collection[str]) -> None:
        """Removes files older than an hour that nobody names: what crashes left behind."""
        before = time.time() - STRAY_SECONDS
        for path in (self._root / kind).iterdir():
            with contextlib.suppress(OSError):  # another process may sweep as well
                if path.name not in known and path.stat().st_mtime < before:
                    path.unlink()


def _sync_directory(directory: Path) -> None:
    """Makes a rename in `directory` survive a power cut (where directories can be opened, as they can't on Windows)."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checkpoint_name(job: Job) -> str:
    """Each attempt has its own file, so that what an earlier one still writes can't reach a later one."""
    return f"{job.id}-{job.attempt}"


def frames_name(job: Job) -> str:
    """The frames of an attempt's film so far, beside its checkpoint."""
    return f"{checkpoint_name(job)}.film"


def preview_name(job_id: str) -> str:
    """The file of a job's preview."""
    return f"{job_id}.jpeg"
