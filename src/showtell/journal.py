"""Files that are written whole or not at all, alone or as a set; a killed writer leaves the old set or the new one.

A fresh folder is written beside its place and renamed. An existing one is overwritten by a redo journal inside it:

1. the complete new set is written and synced in `.showtell-new`;
2. `.showtell-new` is renamed to `.showtell-commit`: from here on the new set counts;
3. each file is linked out of `.showtell-commit` over the old one, and files the new set doesn't have are removed;
4. `.showtell-commit` is renamed away and deleted.

A reader that finds `.showtell-commit` reads from it; the next writer finishes it first. Writers of one folder wait for
each other (a lock on the directory, where the system has such locks).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import FormatError, NotFoundError, RunError, ShowtellError

if sys.platform != "win32":
    import fcntl

__all__ = ["alone", "claim", "create", "open_set", "overwrite", "said_plainly", "write_file"]

NEW = ".showtell-new"
COMMIT = ".showtell-commit"
OLD = ".showtell-old"
LINK = ".showtell-link"
LOCK = ".showtell-lock"
_TRIES = 200


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write one file atomically and durably: beside it, synced, renamed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(Path(folder) / "a.txt", b"hello")
        ...     (Path(folder) / "a.txt").read_bytes()
        b'hello'

    Raises RunError when it can't be written (disk full, no permission), the old file being untouched then.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.showtell-tmp")
    with said_plainly(path), _locked(path.parent):
        try:
            _write_synced(beside, data)
            beside.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def create(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Write a folder that doesn't exist yet: beside its place, synced, renamed.

    Returns False, nothing being changed, when something is there already; raises RunError when it can't be written.
    """
    beside = folder.with_name(f".{folder.name}.showtell-new")
    with said_plainly(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):
            if os.path.lexists(folder):
                return False
            try:
                _write_set(beside, files)
                beside.rename(folder)
            except BaseException:
                _discard(beside)
                raise
            _sync_folder(folder.parent)
            return True


def overwrite(
    folder: Path, files: Mapping[str, bytes], *, stale: Iterable[str], check: Callable[[], None] = lambda: None
) -> None:
    """Replace a set of files in an existing folder, all of them or none; other files are untouched.

    `stale` names files that the old set may have and that go when the new one lacks them. `check` is called after an
    interrupted write has been finished and before anything is changed; what it raises stops the writing. Raises
    RunError when the files can't be written; then the old set counts, or, once all is on disk, the new one.
    """
    with said_plainly(folder), _locked(folder):
        for left_over in (NEW, OLD, LINK):
            _discard(folder / left_over)
        if _is_folder(folder / COMMIT):
            _finish(folder, stale)
        check()
        _discard(folder / COMMIT)
        try:
            _write_set(folder / NEW, files)
            (folder / NEW).rename(folder / COMMIT)
        except BaseException:
            _discard(folder / NEW)
            raise
        _sync_folder(folder)
        _finish(folder, stale)


def open_set(folder: Path, names: Iterable[str]) -> tuple[Path, dict[str, BinaryIO]]:
    """Open those of the named files that exist, all belonging to one set, and say which folder they are in.

    The open files stay what they are when a writer replaces them. Raises FormatError for what is no regular file,
    NotFoundError for what can't be opened.
    """
    names = tuple(names)
    for _ in range(_TRIES):
        source = _current(folder)
        with ExitStack() as stack:
            opened = {}
            for name in names:
                file = _open_regular(source / name)
                if file is not None:
                    opened[name] = stack.enter_context(file)
            # If every path still leads to the file that was opened, no writer was at work between the first and the
            # last opening: a replaced file is another file, and one that is held open isn't reused.
            if _current(folder) == source and all(_same(source / name, opened.get(name)) for name in names):
                stack.pop_all()
                return source, opened
        time.sleep(0.01)
    raise FormatError(f"{folder} is being rewritten over and over; try again later")


def _current(folder: Path) -> Path:
    return folder / COMMIT if _is_folder(folder / COMMIT) else folder


def _is_folder(path: Path) -> bool:
    """A real folder; a link to one isn't the journal's."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _open_regular(path: Path) -> BinaryIO | None:
    try:
        # Without O_NONBLOCK, opening a named pipe waits for ever.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotFoundError(f"{path} can't be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise FormatError(f"{path} must be a regular file")
    return os.fdopen(number, "rb")


def _same(path: Path, opened: BinaryIO | None) -> bool:
    try:
        now = path.stat()
    except OSError:
        return opened is None
    return opened is not None and os.path.samestat(now, os.fstat(opened.fileno()))


def _finish(folder: Path, stale: Iterable[str]) -> None:
    commit = folder / COMMIT
    names = sorted(entry.name for entry in os.scandir(commit) if entry.is_file(follow_symlinks=False))
    for name in names:
        _install(commit / name, folder / name)
    for name in sorted(set(stale) - set(names)):
        (folder / name).unlink(missing_ok=True)
    _sync_folder(folder)
    commit.rename(folder / OLD)
    _sync_folder(folder)
    _discard(folder / OLD)


def _install(source: Path, target: Path) -> None:
    """Put a second name of `source` over `target`; a copy where the file system has no hard links."""
    if target.exists() and source.samefile(target):
        return  # renaming one name of a file over another one does nothing
    link = target.with_name(LINK)
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(source)
    except OSError:
        _write_synced(link, source.read_bytes())
    link.replace(target)


def _write_set(folder: Path, files: Mapping[str, bytes]) -> None:
    _discard(folder)
    folder.mkdir()
    for name, data in files.items():
        _write_synced(folder / name, data)
    _sync_folder(folder)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _discard(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the directory's lock; file systems without such locks go unlocked."""
    if sys.platform == "win32":
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(number)


def claim(file: BinaryIO, name: Path) -> None:
    """Be the only one to write an open file until it is closed; raises RunError at once when another one does.

    `name` is what the error calls it. File systems without locks let everybody in.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"{name} is being written by another command that still runs; wait for its end, or name another place"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only one at work in a folder, which is made if absent; raises RunError at once when another one is.

    A killed process leaves an empty file, `.showtell-lock`, and no lock.
    """
    path = folder / LOCK
    with ExitStack() as stack:
        with said_plainly(folder):
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                file = stack.enter_context(path.open("ab"))
                claim(file, folder)
                if _same(path, file):
                    break  # else its owner was about to leave and has removed it
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF)
_ADVICE = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EROFS: "choose a place that you may write to",
    errno.ENOENT: "make the folder that it lies in first",
}


@contextmanager
def said_plainly(path: Path) -> Iterator[None]:
    """Turn what the system says of a place that can't be written to into a RunError with advice."""
    try:
        yield
    except ShowtellError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "choose another place")
        raise RunError(f"{path} can't be written: {error.strerror or error}; {advice}") from error
