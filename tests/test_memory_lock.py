"""The gate's memory stays where it is when other programs use the rest up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_LOCKS = """
import mmap, os, re, resource, sys
from pathlib import Path
from gateway.host import lock_memory

store = Path(sys.argv[1], "stores", "0001.mdb")
with store.open("rb") as file:
    held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
assert held[0] == 7
if sys.argv[2] == "refused":
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    os.getuid() or os.setuid(65534)  # root's right goes beyond the limit
kept = lock_memory(store.parent)
kernel = int(re.search(r"VmLck:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(kept, kernel)
print(Path("/proc/self/smaps").read_text())
"""


def kept_by(smaps: str) -> list[str]:
    """The mappings of /proc/PID/smaps (proc(5)) that are locked: address, rights, file."""
    parts = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps)
    return [part.split("\n")[0] for part in parts if " lo" in part.rpartition("VmFlags:")[2]]


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """Under a name that is a symbolic link: the kernel has another."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "0001.mdb").write_bytes(bytes([7]) * 65536)
    (tmp_path / "stores").symlink_to("disk")
    return tmp_path


def locked(stores: Path, how: str) -> tuple[int, int, list[str]]:
    """(bytes that are said to be kept, bytes that the kernel counts, the mappings that it keeps)."""
    command = [sys.executable, "-c", _LOCKS, str(stores), how]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    first, _, smaps = done.stdout.partition("\n")
    kept, kernel = map(int, first.split())
    return kept, kernel, kept_by(smaps)


def test_code_is_kept_and_stores_are_not(stores: Path) -> None:
    """As much is locked as the kernel says, the interpreter's code among it, and nothing of a snapshot."""
    kept, kernel, mappings = locked(stores, "as far as it may")
    assert kept == kernel > 0
    assert any(os.path.realpath(sys.executable) in mapping for mapping in mappings)
    assert not any("0001.mdb" in mapping for mapping in mappings)


def test_refused(stores: Path) -> None:
    """Without the right to lock nothing is locked, and nothing fails."""
    assert locked(stores, "refused") == (0, 0, [])
