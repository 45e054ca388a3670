"""What takes minutes to make is kept between runs, in a folder named after what went into it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
_KEPT = 10
"""Folders of a kind that stay; the least used go."""


def cache() -> Path:
    """Where everything is kept: ``GATEWAY_HARDWARE_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("GATEWAY_HARDWARE_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else home / "entry-scan-gateway-hardware"


@contextlib.contextmanager
def made(kind: str, name: str) -> Iterator[tuple[Path, Path | None]]:
    """The folder for these inputs, and a folder to fill if it is not there; put in place when all went well.
    Of two who want it at once one builds and the other waits."""
    root = cache()
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"{kind}-{name}"
    with open(root / f".{kind}-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.exists():
            os.utime(final)
            yield final, None
            return
        part = root / f"{kind}-{name}.part"
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        sys.stderr.write(f"hardware: making {final.name}\n")
        yield final, part
        part.rename(final)
        kept = sorted(
            (p for p in root.glob(f"{kind}-*") if not p.name.endswith(".part")),
            key=lambda p: p.stat().st_mtime,
        )
        for old in kept[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def digest(files: list[Path], *more: str) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for file in files:
        hashed.update(str(file.relative_to(CHECKOUT)).encode() + b"\0" + file.read_bytes() + b"\0")
    for text in more:
        hashed.update(text.encode() + b"\0")
    return hashed.hexdigest()


def run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Its output, if it did well."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=env
    )
    if done.returncode:
        raise SystemExit(f"hardware: {words} failed with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout
