"""Power cuts at every moment that a disk knows: the gate's data_dir lies on a device that logs each write.

After each flush and each write past the cache (FUA), and with random parts of what no flush had made sure of
yet, the disk is put together anew, its journal recovered, and the stores opened by the gateway's own code.
GATEWAY_HARDWARE_SUBSETS (2) of those parts are tried before each flush; GATEWAY_HARDWARE_SEED says which.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.cache.ledger import read_events
from gateway.cache.ledger_store import FILE, Store
from gateway.cache.snapshot import Snapshot
from tests.hardware.gate import Gate
from tests.hardware.guest import Guest
from tests.hardware.logwrites import Write, entries
from tests.hardware.mains import CONFIG, codes, world

SUBSETS = int(os.environ.get("GATEWAY_HARDWARE_SUBSETS", "2"))
SEED = int(os.environ.get("GATEWAY_HARDWARE_SEED") or random.SystemRandom().randrange(1 << 32))
MEBIBYTE = 1 << 20
DISK, LOG = 32 * MEBIBYTE, 1024 * MEBIBYTE
VISITORS = codes(40)
SECTOR, BLOCK = 512, 4096


@pytest.fixture(scope="module")
def log(computers: Callable[..., Guest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a gate's disk: cards imported, visitors, cards imported anew meanwhile, more visitors."""
    folder = tmp_path_factory.mktemp("disks")
    disks = [folder / "data", folder / "log"]
    for disk, size in zip(disks, (DISK, LOG), strict=True):
        with open(disk, "wb") as file:
            file.truncate(size)
    # The log says what was flushed; whether the host flushes too does not matter here.
    guest = computers(extra=disks, cache="unsafe")
    guest.boot(until="system")
    gate = Gate(guest)
    guest.run(
        f"""set -e
        systemctl stop gateway
        modprobe dm_log_writes
        dmsetup create writes --table '0 {DISK // SECTOR} log-writes /dev/vdb /dev/vdc'
        mke2fs -q -t ext4 -b {BLOCK} -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/writes
        mount /dev/mapper/writes /var/lib/gateway
        chown gateway: /var/lib/gateway
        chmod 700 /var/lib/gateway
        sync
        dmsetup message writes 0 mark begin""",
        timeout=120,
    ).ok()
    world(guest)
    gate.configure(CONFIG)
    gate.cards(VISITORS)
    guest.run("dmsetup message writes 0 mark cards-1").ok()
    gate.start()
    guest.until(lambda: gate.reader_up("scanner"), "the scanner is open", 60)
    guest.call("load.begin", scanners=[["serialscanner", "scanner", VISITORS]], ahead=0, mark="writes")
    gate.cards(VISITORS)
    guest.run("dmsetup message writes 0 mark cards-2").ok()
    guest.heard("gpio", 2 * len(VISITORS), timeout=300)
    guest.call("load.end", timeout=60)
    guest.until(lambda: len(gate.events()) >= len(VISITORS), "every entry is on record", 30)
    guest.run("dmsetup message writes 0 mark end").ok()
    guest.cut()
    return disks[1]


@dataclass
class Flush:
    """What happened from one flush to the next."""

    sure: list[Write] = field(default_factory=list)
    """Past the cache, and marks: in their order, and there whatever lies in the cache."""
    cached: list[Write] = field(default_factory=list)
    """Made sure of by the flush that ends this."""


def flushes(writes: Iterator[Write]) -> Iterator[Flush]:
    group = Flush()
    for write in writes:
        if write.flush:  # it comes before its own data
            yield group
            group = Flush()
        if write.fua or write.mark:
            group.sure.append(write)
        elif write.data:
            group.cached.append(write)
    yield group


class Disk:
    """A disk after a power cut."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.content = folder, bytearray(DISK)
        self.marks: list[str] = []
        self.prefixes = self.subsets = 0
        self.recorded: set[int] = set()
        """How many visitors were on record, over all that was looked at."""

    def apply(self, write: Write) -> None:
        if write.mark is not None:
            self.marks.append(write.mark)
        self.content[write.offset : write.offset + len(write.data)] = write.data

    def with_some_of(self, cached: list[Write], dice: random.Random) -> bytearray:
        """Of what lay in the cache each write has come to the disk or not, or some of its blocks have. No
        block is torn inside: ext4 itself does not outlive half a superblock."""
        content = bytearray(self.content)
        torn = dice.choice([None, BLOCK])
        share = dice.random()
        for write in cached:
            step = torn or max(len(write.data), 1)
            for start in range(0, len(write.data), step):
                if dice.random() < share:
                    piece = write.data[start : start + step]
                    content[write.offset + start : write.offset + start + len(piece)] = piece
        return content

    def check(self, content: bytearray, what: str) -> None:
        """The file system is recovered as at boot, and everything that was promised up to now is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        data_dir = self.folder / "data"
        data_dir.mkdir(parents=True)
        image = self.folder / "disk"
        image.write_bytes(content)
        # 0: nothing to do, 1: done. More would be a file system that journal and preening do not mend.
        done = subprocess.run(["/sbin/e2fsck", "-fp", image], capture_output=True, text=True)
        assert done.returncode in (0, 1), f"{what}: {done.stdout}{done.stderr}"
        subprocess.run(["/sbin/debugfs", "-R", f"rdump / {data_dir}", image], check=True, capture_output=True)
        store = Store.open(data_dir / FILE, "north")
        store.close()
        assert store.set_aside is None, f"{what}: {store.set_aside_reason}"
        events = read_events(data_dir / FILE, 0, 1 << 20)
        assert not [e for e in events if e.get("damaged")], what
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1)), what
        admitted = [e["credential"] for e in events if e["kind"] == "scan"]
        opened = sum(mark.startswith("pulse") for mark in self.marks)
        assert admitted == [f"C{n}" for n in range(len(admitted))], what
        assert len(admitted) >= opened, f"{what}: {opened} pulses, {len(admitted)} entries"
        self.recorded.add(len(admitted))
        if "cards-1" in self.marks:
            unusable: list[str] = []
            snapshot = Snapshot.open(data_dir, lambda path, reason: unusable.append(reason))
            assert not unusable, f"{what}: {unusable}"
            assert snapshot is not None, what
            found = snapshot.find(VISITORS[-1].encode())
            assert found is not None, what
            assert found.id == f"C{len(VISITORS) - 1}", what
            assert snapshot.generation >= (2 if "cards-2" in self.marks else 1), what
            snapshot.close()


def test_after_a_cut_at_any_write_the_stores_open_and_every_pulse_is_on_record(
    log: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """The file system, ledger and snapshot at each flush, each FUA, and with parts of the cache between."""
    disk, dice = Disk(tmp_path / "after"), random.Random(SEED)
    number = 0
    for number, group in enumerate(flushes(entries(log))):
        begun = "begin" in disk.marks
        for write in group.sure:
            disk.apply(write)
            if begun and write.fua:
                disk.prefixes += 1
                disk.check(disk.content, f"after a FUA between flush {number} and the next")
        for part in range(SUBSETS if begun and group.cached else 0):
            disk.subsets += 1
            some = disk.with_some_of(group.cached, dice)
            disk.check(some, f"subset {part} before flush {number + 1}, GATEWAY_HARDWARE_SEED={SEED}")
        for write in group.cached:
            disk.apply(write)
        if begun and group.cached:
            disk.prefixes += 1
            disk.check(disk.content, f"after flush {number + 1}")
    opened = sum(mark.startswith("pulse") for mark in disk.marks)
    say(
        f"power cuts replayed from the log of {number} flushes: {disk.prefixes} prefixes and"
        f" {disk.subsets} with a random part of the cache; {opened} pulses; GATEWAY_HARDWARE_SEED={SEED}"
    )
    assert opened == len(VISITORS)
    assert disk.marks[-1] == "end"
    assert len(disk.recorded) > len(VISITORS) // 2, "nearly all of it was looked at in the same state"


def test_a_flush_that_the_disk_only_pretended_would_be_noticed(log: Path, tmp_path: Path) -> None:
    """Without what was flushed between the last two pulses the entry of the last one is missing."""
    disk, forgets = Disk(tmp_path / "after"), False
    for group in flushes(entries(log)):
        for write in group.sure:
            forgets = forgets or write.mark == f"pulse-{len(VISITORS) - 1}"
            disk.apply(write)
        if f"pulse-{len(VISITORS)}" in disk.marks:
            break
        for write in group.cached if not forgets else []:
            disk.apply(write)
    with pytest.raises(AssertionError, match=f"{len(VISITORS)} pulses, {len(VISITORS) - 1} entries"):
        disk.check(disk.content, "after a disk that forgets")
