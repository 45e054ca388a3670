"""The configuration on disk: whole or not at all, and the one before is kept."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

from gateway.host import write_durably

USER = "gateway"


def cannot_write(path: Path) -> str:
    """Why the file could not be written, or ""."""
    there = next(parent for parent in path.parents if parent.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK) else f"{there} cannot be written"


def write(path: Path, text: str) -> Path | None:
    """Puts the text there, and what was there before beside it as ``.bak``, which is given. At every moment
    the file is the one before or the new one, whole. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    kept = None
    mode, owner = 0o644, None
    if path.exists():
        before = path.stat()
        mode, owner = before.st_mode & 0o777, (before.st_uid, before.st_gid)
        kept = path.with_name(f"{path.name}.bak")
        write_durably(kept, path.read_bytes(), mode)
    write_durably(path, text.encode(), mode)
    if owner is not None and owner != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError):
            os.chown(path, *owner)
    return kept


def make_data_dir(path: Path) -> None:
    """Makes the folder if it is not there, for the gate's user where there is one. Raises OSError."""
    if path.is_dir():
        return
    path.mkdir(mode=0o700, parents=True)
    path.chmod(0o700)
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(USER)
            os.chown(path, user.pw_uid, user.pw_gid)
