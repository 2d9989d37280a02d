"""Atomic writes, file digests, and parallel work on many files."""

import errno
import fcntl
import hashlib
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")


@contextmanager
def atomic_stream(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; it replaces `path` once it is complete.

    Raises:
        OSError: names `path`, whose previous content is then unchanged.
    """
    path = Path(path)
    # In the same directory, because os.replace is atomic only within one file system.
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        try:
            with _created(temporary) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        # An error about a file that the caller reads meanwhile keeps that file's name.
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _created(path: Path) -> BinaryIO:
    """A new file, locked, so that `remove_unfinished` leaves it."""
    while True:
        stream = open(path, "xb")  # noqa: SIM115
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if path.exists():
            return stream
        stream.close()  # it was taken for a leftover before it was locked


def remove_unfinished(directory: Path) -> None:
    """Remove the temporary files that killed processes have left in a directory.

    Those that a process is writing stay, where the file system has locks.
    """
    for path in directory.glob(f".{'[0-9a-f]' * 32}.tmp"):
        with suppress(OSError), open(path, "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, whole or not at all.

    Raises:
        OSError: as `atomic_stream`.
    """
    with atomic_stream(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def lock(stream: IO[Any], place: Path) -> None:
    """Hold an open file against every other process until it is closed.

    On a file system without locks, as some network file systems are, a warning takes their place.

    Args:
        place: what is written meanwhile, for the warning.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        print(
            f"warning: {place}: this file system has no locks ({error.strerror}); nothing keeps a"
            " second command from writing there meanwhile",
            file=sys.stderr,
        )


def _sync_directory(directory: Path) -> None:
    """Flush a directory to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def in_parallel(work: Callable[..., T], items: Iterable, total: int, name: str) -> Iterator[T]:
    """Results of `work` on each item, in order, computed on threads, with a progress bar.

    Args:
        work: must mostly release the GIL, as file reads, sha256 and copies do.
        total: number of items.
        name: label of the progress bar.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # Only a long wait deserves a bar; `disable=None` keeps it out of files and pipes.
        yield from tqdm(
            pool.map(work, items), desc=name, total=total, unit="image", disable=None, delay=1,
            dynamic_ncols=True, leave=False,
        )  # fmt: skip
