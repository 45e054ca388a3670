"""How the importer shares the disk with the gate."""

from __future__ import annotations

import time

from gateway.cache.spool import Pacer


def test_standstill_of_the_disk_makes_the_steps_small() -> None:
    """A disk that takes much at once and then stands still gets small steps from then on."""
    pacer = Pacer(0)
    synced: list[int] = []

    def sync() -> None:
        synced.append(pacer.step)

    whole = pacer.step
    for _ in range(8):
        pacer.wrote(whole // 4, sync)
    assert synced == [whole, whole]  # a step is full at three quarters: 3, 3 and 2 of 4
    pacer.wrote(whole, lambda: time.sleep(0.03))
    small = pacer.step
    assert small < whole
    synced.clear()
    for _ in range(8):
        pacer.wrote(small, sync)
    assert synced == [small] * 8


def test_every_byte_is_synced_in_a_step_or_left_for_the_next() -> None:
    """What is written in small pieces is synced as soon as a step is nearly full, and not before."""
    pacer = Pacer(0)
    calls: list[int] = []
    for piece in range(100):
        pacer.wrote(pacer.step // 10, lambda piece=piece: calls.append(piece))
    assert calls == list(range(7, 100, 8))
