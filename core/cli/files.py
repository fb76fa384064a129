"""What a run will write, checked before the work begins."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from core.errors import UserError


def check_writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Makes sure that a file can be written at `path`, and is none of `inputs`.

    Raises:
        UserError: It is a folder or an input, its folder is missing, or may not be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder", "Name a file in it")
    if any(_are_same(path, given) for given in inputs):
        raise UserError(f"{path} is also one of the pictures to read", "Choose another name for the output")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: its folder does not exist", "Create the folder first")
    _try_folder(folder)


def make_folder(folder: Path) -> None:
    """Makes `folder` if it isn't there yet, and makes sure that files can be written in it.

    Raises:
        UserError: It can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({error.strerror})", "Choose another place") from error
    _try_folder(folder)


def _are_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _try_folder(folder: Path) -> None:
    """By writing: permissions alone don't tell of disks that are read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        cause = f"nothing can be written in the folder {folder} ({error.strerror})"
        raise UserError(cause, "Choose another folder, or change its permissions") from error
