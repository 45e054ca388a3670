"""The ledger on a disk that is slow, full, failing, or not there."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.model import Passage
from tests.cache.ledger_rig import Rig, file, grant, outcome, rows


class Disk:
    """A folder whose disk can be made full, or failing, and well again."""

    def __init__(self, folder: Path, spoil: Callable[[], None], mend: Callable[[], None], says: str) -> None:
        self.folder, self.spoil, self.mend, self.says = folder, spoil, mend, says


@contextlib.contextmanager
def full_disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of one megabyte where this user may mount one, else the failing disk."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode != 0:
        with failing_disk(tmp_path) as disk:
            yield disk
        return
    ballast = folder / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)

    try:
        yield Disk(folder, fill, lambda: ballast.unlink(missing_ok=True), "free some space")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def failing_disk(tmp_path: Path) -> Iterator[Disk]:
    """Any write that lets a file grow fails with an error that is not "disk full"."""
    folder = tmp_path / "disk"
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def mend() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        yield Disk(
            folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard)), mend, "reports errors"
        )
    finally:
        mend()


Kind = Callable[[Path], contextlib.AbstractContextManager[Disk]]


@pytest.mark.parametrize(("kind", "on_failure"), [(full_disk, "admit"), (failing_disk, "deny")])
def test_events_wait_in_memory_while_the_disk_takes_none(tmp_path: Path, kind: Kind, on_failure: str) -> None:
    """Answers follow on_failure, once each; the fault is told once; afterwards all is written in order."""

    async def main() -> None:
        with kind(tmp_path) as disk, Rig(disk.folder, on_failure=on_failure) as rig:  # type: ignore[arg-type]
            ledger = rig.ledger
            rig.grants(1, 4)
            await rig.on_disk()
            disk.spoil()
            number = 4
            while not rig.faults:  # the log may have room left for some more
                rig.record(grant(number, passage=Passage.PENDING), number)
                number += 1
                await rig.until(lambda: ledger.pending == 0 or rig.faults)
            written = ledger.last_seq
            for later in range(number, number + 20):
                event = grant(later, passage=Passage.PENDING)
                rig.record(event, later)
                assert ledger.person(f"H{later}", 0) == [event.movement]
                rig.record(outcome(event, Passage.TAKEN), 1000 + later)
                assert [m.passage for m in ledger.person(f"H{later}", 0)] == [Passage.TAKEN]
            await asyncio.sleep(0.01)
            assert ledger.failed is not None
            assert disk.says in ledger.failed
            assert str(disk.folder) in ledger.failed
            said = [rig.answers[n] for n in sorted(rig.answers)]
            assert said == [[True]] * written + [[on_failure == "admit"]] * (len(said) - written)
            assert ledger.pending == len(said) - written
            disk.mend()
            await rig.on_disk()
            assert ledger.failed is None
            assert [fault is None for fault in rig.faults] == [False, True]
            rig.grants(500, 501)
            await rig.on_disk()
            assert rig.answers[500] == [True]
            assert [said for said in rig.answers.values() if len(said) != 1] == []
            assert ledger.lost == 0
            kept = rows(disk.folder, "SELECT seq, kind, at, of_seq FROM event ORDER BY seq")
            assert [row[0] for row in kept] == list(range(1, len(kept) + 1))
            expected = [("scan", n, None) for n in range(1, number)]
            for later in range(number, number + 20):
                expected += [("scan", later, None), ("passage", later + 1, len(expected) + 1)]
            assert [row[1:] for row in kept] == [*expected, ("scan", 500, None)]
            assert rows(disk.folder, "SELECT count(*) FROM movement WHERE passage = 'taken'") == [(20,)]

    asyncio.run(main())


def test_memory_is_bounded_and_what_is_beyond_is_counted(tmp_path: Path) -> None:
    """Beyond memory_events the new ones are lost and counted; what waited before is written."""

    async def main() -> None:
        with failing_disk(tmp_path) as disk, Rig(disk.folder, memory=10, on_failure="deny") as rig:
            rig.grants(1, 3)
            await rig.on_disk()
            disk.spoil()
            events = rig.grants(3, 13)
            await rig.until(lambda: rig.ledger.failed)
            lost = grant(13, passage=Passage.PENDING)
            rig.record(lost, 13)
            rig.grants(14, 16)
            await asyncio.sleep(0.01)
            assert rig.ledger.lost == 3
            assert rig.ledger.pending == 10
            assert {tuple(rig.answers[n]) for n in range(3, 16)} == {(False,)}
            assert not rig.ledger.person("H13", 0)
            assert rig.ledger.person("H12", 0) == [events[-1].movement]
            disk.mend()
            await rig.on_disk()
            rig.record(outcome(lost, Passage.TAKEN), 20)  # its grant is lost: the passage makes the movement
            await rig.on_disk()
            assert [m.passage for m in rig.ledger.person("H13", 0)] == [Passage.TAKEN]
            assert rows(tmp_path / "disk", "SELECT seq, at FROM event ORDER BY seq") == [
                *((n, n) for n in range(1, 13)),
                (13, 14),
            ]
            assert rows(tmp_path / "disk", "SELECT of_seq FROM event WHERE seq = 13") == [(None,)]

    asyncio.run(main())


def test_late_commits_let_the_visitor_through_and_are_counted(tmp_path: Path) -> None:
    """While a commit waits, then is called at the deadline; they are written later, and answered once."""

    async def main() -> None:
        with Rig(tmp_path, deadline=20_000) as rig, file(tmp_path) as other:
            other.execute("BEGIN IMMEDIATE")  # as a disk that does not answer
            rig.grants(1, 4)
            await asyncio.sleep(0)
            assert rig.answers == {1: [], 2: [], 3: []}
            await rig.until(lambda: rig.late == 3)
            rig.grants(4, 6)
            assert [rig.answers[n] for n in (4, 5)] == [[], []]
            await rig.until(lambda: rig.late == 5)
            await asyncio.sleep(0)
            assert rig.answers == {n: [True] for n in range(1, 6)}
            assert rig.ledger.pending == 5
            assert rows(tmp_path, "SELECT count(*) FROM event") == [(0,)]
            other.execute("COMMIT")
            await rig.on_disk()
            assert rig.answers == {n: [True] for n in range(1, 6)}
            assert rig.faults == []
            assert rows(tmp_path, "SELECT seq, credential FROM event") == [(n, f"C{n}") for n in range(1, 6)]

    asyncio.run(main())


@pytest.mark.parametrize("on_failure", ["admit", "deny"])
def test_a_ledger_that_cannot_be_opened_is_a_fault_from_the_start(tmp_path: Path, on_failure: str) -> None:
    """open does not raise; events wait in memory, and are written once the folder is there."""

    async def main() -> None:
        folder = tmp_path / "data"
        folder.write_text("a file where the folder should be")
        with Rig(folder, on_failure=on_failure) as rig:  # type: ignore[arg-type]
            assert rig.ledger.failed is not None
            assert "belongs to the user" in rig.ledger.failed
            assert rig.faults == [rig.ledger.failed]
            assert rig.ledger.epoch is None
            event = grant(1)
            rig.record(event, 1)
            await asyncio.sleep(0.01)
            assert rig.answers[1] == [on_failure == "admit"]
            assert rig.ledger.person("H1", 0) == [event.movement]
            assert rig.ledger.person("H2", 0) == []
            assert list(rig.ledger.movements_since(0)) == [event.movement]
            assert rig.ledger.events(0, 10) == []
            folder.unlink()
            folder.mkdir()
            await rig.on_disk()
            assert rig.faults[1:] == [None]
            assert rig.ledger.epoch is not None
            assert rig.ledger.person("H1", 0) == [event.movement]
            assert [row["credential"] for row in rig.ledger.events(0, 10)] == ["C1"]

    asyncio.run(main())


def test_a_ledger_that_opens_late_still_knows_who_was_here(tmp_path: Path) -> None:
    """After a start without a disk, what was recorded before it counts again as soon as the disk is there."""

    async def main() -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        with Rig(folder) as rig:
            rig.grants(1, 3)
        folder.rename(tmp_path / "away")
        with Rig(folder, recent_from=2) as rig:
            rig.grants(3, 4)
            assert rig.ledger.failed is not None
            assert rig.ledger.person("H2", 2) == []
            (tmp_path / "away").rename(folder)
            await rig.on_disk()
            await rig.until(lambda: rig.ledger.failed is None)
            assert [m.seq for m in rig.ledger.person("H2", 2)] == [2]
            assert [m.seq for m in rig.ledger.person("H3", 2)] == [3]
            assert rig.ledger.set_aside is None

    asyncio.run(main())


def test_a_full_disk_at_start_can_still_be_read(tmp_path: Path) -> None:
    """A ledger that can only be read is a fault at once, and limits still know what happened before."""

    async def main() -> None:
        with failing_disk(tmp_path) as disk:
            with Rig(disk.folder) as rig:
                rig.grants(1, 3)
            with file(disk.folder) as other:  # keeps the side files there, which could not be made
                assert other.execute("SELECT count(*) FROM event").fetchone() == (2,)
                disk.spoil()
                with Rig(disk.folder) as rig:
                    assert [fault is None for fault in rig.faults] == [False]
                    assert [m.seq for m in rig.ledger.person("H2", 0)] == [2]
                    rig.grants(3, 4)
                    disk.mend()
                    await rig.on_disk()
                    assert [fault is None for fault in rig.faults] == [False, True]
            assert rows(disk.folder, "SELECT max(seq) FROM event") == [(3,)]
            assert rig.ledger.set_aside is None

    asyncio.run(main())


def test_closing_during_a_fault_says_that_not_all_is_written(tmp_path: Path) -> None:
    """close tries once more and returns False; it does not wait for a disk that is gone."""

    async def main() -> None:
        with failing_disk(tmp_path) as disk:
            rig = Rig(disk.folder)
            disk.spoil()
            rig.grants(1, 3)
            await rig.until(lambda: rig.ledger.failed)
            assert rig.ledger.close() is False
            assert rig.ledger.pending == 2
            disk.mend()
            rig = Rig(disk.folder)
            disk.spoil()
            rig.grants(1, 3)
            await rig.until(lambda: rig.ledger.failed)
            rig.grants(3, 5)
            disk.mend()
            assert rig.ledger.close() is True
            assert rows(disk.folder, "SELECT seq, at FROM event") == [(n, n) for n in range(1, 5)]

    asyncio.run(main())
