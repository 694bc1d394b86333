"""Committed or absent: whatever is written to keep appears under its name whole, or not at all.

temporary sibling -> files -> sync each -> manifest, last -> sync the folder -> rename -> sync the parent.
A kill or a power cut at any point leaves the old folder or the new one under the name. What is newest is
computed by verifying, never stored as a pointer. Source: the commit protocol of databases; reasons and
counter-examples are named beside each step. Read next: manifest, tensors.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks; there `sweep` trusts that no other run lives
    fcntl = None

from transom.errors import Refused

from .manifest import MANIFEST, files_below, read_manifest, seal, sync, verify

__all__ = ["NotSaved", "commit", "latest", "recover", "replace_file", "retain", "sweep", "verify"]

# Hidden siblings of a folder NAME are called PREFIX + 8 random hex digits + "-" + NAME.
TEMPORARY, ASIDE, GARBAGE = ".tmp-", ".old-", ".gc-"
HIDDEN = re.compile(r"\.(?:tmp|old|gc)-[0-9a-f]{8}-(.+)", re.DOTALL)
FREE_SOME = "free some space, or save to another disk"
FIXES = {
    errno.ENOSPC: FREE_SOME,
    errno.EDQUOT: FREE_SOME,
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
}
RENAME_EXCHANGE = 2
HEADROOM = 1.2
"""Free space asked for before a save, as a multiple of the last one's size."""


class NotSaved(Refused):
    """A save that did not happen; what was saved before is untouched, and a later save may succeed."""


@contextmanager
def commit(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to write into; when the block ends without error it becomes `path`, at once.

    A committed folder already at `path` is replaced; anything else there is refused. Raises NotSaved when the
    disk is full or fails; then the temporary folder is removed and the old one stays.
    """
    path = Path(os.path.abspath(path))
    _check_replaceable(path)
    temporary = _sibling(path, TEMPORARY)
    with _not_saved(path):
        _make_directory(path.parent)
        _check_space(path)
        os.mkdir(temporary)
    try:
        with _held(temporary):  # so that another process does not sweep it away
            with _not_saved(path, (*FIXES, errno.EIO, errno.EROFS)):
                yield temporary
            with _not_saved(path):
                seal(temporary)
                _install(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange this is the old folder


def replace_file(path: str | Path, name: str, content: str) -> None:
    """Write one file of a committed folder anew, and commit it with that; all others stay the same files.

    Raises Refused where the folder does not verify, and NotSaved as `commit` does.
    """
    path = Path(os.path.abspath(path))
    verify(path, hashes=False)
    with commit(path) as new:
        for other in files_below(path):
            if other not in (name, MANIFEST):
                (new / other).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path / other, new / other)
                except OSError:  # a file system without hard links
                    shutil.copy2(path / other, new / other)
        (new / name).write_text(content, encoding="utf-8")


def latest(parent: str | Path, pattern: str = "step-*") -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest folder by name that verifies, and each newer one that does not, with the reason."""
    refused: list[tuple[Path, str]] = []
    for path in _newest_first(Path(parent), pattern):
        try:
            verify(path)
            return path, refused
        except Refused as reason:
            refused.append((path, str(reason)))
    return None, refused


def retain(parent: str | Path, keep: int, pattern: str = "step-*", spare: str = "") -> list[Path]:
    """Remove committed folders beyond the newest `keep`; returns what was removed.

    spare: the name of one that stays and is counted among them, though another one stays beside it. Folders
    that are incomplete do not count and are left alone, so they never push out a good one. Sizes are
    compared, not hashes: this runs after every save.
    """
    if keep < 1:
        raise Refused(f"keep is {keep}; at least the newest checkpoint is kept")
    committed = [path for path in _newest_first(Path(parent), pattern) if _is_committed(path)]
    others = [path for path in committed if path.name != spare]
    beyond = others[max(1, keep - (len(others) < len(committed))) :]
    for path in beyond:
        remove(path)
    return beyond


def remove(path: Path) -> None:
    """Remove a committed folder; renamed first, so that a half-removed one never bears the name."""
    garbage = _sibling(path, GARBAGE)
    os.rename(path, garbage)
    sync(path.parent)
    shutil.rmtree(garbage, ignore_errors=True)


def sweep(parent: str | Path) -> list[Path]:
    """Clear what interrupted saves left in `parent`, bringing back a folder that was moved aside; on start.

    Returns the hidden folders that were dealt with. Those of a process still running are left alone.
    """
    swept = []
    for hidden in sorted(Path(parent).glob(".*")) if Path(parent).is_dir() else []:
        name = HIDDEN.fullmatch(hidden.name)
        if name is None or not hidden.is_dir() or hidden.is_symlink():
            continue
        with suppress(BlockingIOError), _held(hidden):
            if hidden.name.startswith(ASIDE) and not os.path.lexists(hidden.with_name(name[1])):
                _bring_back(hidden, hidden.with_name(name[1]))
            shutil.rmtree(hidden, ignore_errors=True)
            swept.append(hidden)
    return swept


def recover(path: str | Path) -> None:
    """Bring `path` back if it is gone because a process died between moving it aside and replacing it."""
    path = Path(os.path.abspath(path))
    if not os.path.lexists(path) and any(path.parent.glob(f"{ASIDE}*-{path.name}")):
        sweep(path.parent)


def _bring_back(aside: Path, path: Path) -> None:
    with suppress(Refused):  # not whole: it was being deleted
        verify(aside)
        os.rename(aside, path)
        sync(path.parent)


def _install(new: Path, path: Path) -> None:
    """Rename `new` to `path`, swapping the two when `path` exists: a reader finds one or the other."""
    if not path.exists():
        os.rename(new, path)
        undo = partial(os.rename, path, new)
    elif exchange(new, path):
        undo = partial(exchange, new, path)
    else:
        return _move_in(new, path)
    try:
        sync(path.parent)
    except OSError:
        undo()  # what was acknowledged before stays in place when the disk fails now
        raise


def _move_in(new: Path, path: Path) -> None:
    """Replace `path` where names cannot be swapped; between the renames only `recover` finds the old one."""
    aside = _sibling(path, ASIDE)
    with _held(path):
        os.rename(path, aside)
        try:
            os.rename(new, path)
            sync(path.parent)
        except BaseException:
            if path.exists():
                os.rename(path, new)
            os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step (Linux renameat2); False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here = -100  # AT_FDCWD
    if renameat2(here, os.fsencode(first), here, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _check_replaceable(path: Path) -> None:
    """Refuse to replace what we did not save: other people's folders, or files added to ours."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise Refused(f"{path}: exists and is not a folder; choose another name")
    files = files_below(path)
    if not files:
        return
    try:
        saved = read_manifest(path)
    except Refused as reason:
        if MANIFEST not in files:
            raise Refused(f"{path}: holds files that Transom did not save; choose another name") from None
        raise Refused(f"{reason}; move the folder away before saving here") from None
    for name in files:
        if name not in saved and name != MANIFEST and not name.startswith("."):
            raise Refused(f"{path / name}: would be lost by saving here; move it out of the folder first")


def _check_space(path: Path) -> None:
    """Refuse early when the disk cannot hold another folder like the last one saved here."""
    last, free = _last_size(path), shutil.disk_usage(path.parent).free
    if free < HEADROOM * last:
        reason = f"the last save took {last / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free on the disk"
        raise _unsaved(path, reason, FREE_SOME)


def _last_size(path: Path) -> int:
    """Bytes of the folder at `path`, or else of the newest one beside it; 0 when there is none."""
    beside = [path, *path.parent.iterdir()]
    saved = [(os.stat(at / MANIFEST).st_mtime, at) for at in beside if os.path.isfile(at / MANIFEST)]
    last = path if any(at == path for _, at in saved) else max(saved, default=(0.0, None))[1]
    with suppress(Refused):  # a damaged neighbour says nothing about sizes
        return sum(entry.size for entry in read_manifest(last).values()) if last else 0
    return 0


def _unsaved(path: Path, reason: str, fix: str) -> NotSaved:
    return NotSaved(f"{path} was not saved: {reason}; what was saved before is untouched; {fix}")


@contextmanager
def _not_saved(path: Path, codes: Collection[int] | None = None) -> Iterator[None]:
    """Turn errors of the disk (those in `codes`, or all) into NotSaved."""
    try:
        yield
    except OSError as error:
        if codes is not None and error.errno not in codes:
            raise
        fix = FIXES.get(error.errno or 0, "check the disk, and that you may write there")
        raise _unsaved(path, (error.strerror or str(error)).lower(), fix) from error


def _make_directory(path: Path) -> None:
    """Make a directory and those above it, each one lasting: its entry is synced in its parent."""
    if not path.exists():
        _make_directory(path.parent)
        with suppress(FileExistsError):
            os.mkdir(path)
        sync(path.parent)


def _sibling(path: Path, prefix: str) -> Path:
    return path.with_name(f"{prefix}{secrets.token_hex(4)}-{path.name}")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder for the block, or until this process dies; BlockingIOError when another holds it."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
            # else: a file system without locks
        yield
    finally:
        os.close(handle)


def _is_committed(path: Path) -> bool:
    try:
        verify(path, hashes=False)
        return True
    except Refused:
        return False


def _newest_first(parent: Path, pattern: str) -> list[Path]:
    """Folders matching `pattern`, by name with numbers in order: step-1000 before step-999."""

    def by_number(path: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]

    found = [path for path in parent.glob(pattern) if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=by_number, reverse=True)
