"""Power cuts at random moments under load, on a disk with cache=directsync (see ``mains.CACHES``).

One half of GATEWAY_HARDWARE_CUTS (30); the other half is in another module, so that two run side by side.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.hardware.guest import Guest
from tests.hardware.mains import CUTS, Mains


def test_after_each_power_cut_the_gate_admits_by_itself_and_every_pulse_is_on_record(
    computers: Callable[..., Guest], say: Callable[[str], None]
) -> None:
    """With cache=directsync, at moments that GATEWAY_HARDWARE_SEED draws."""
    mains = Mains(computers, "directsync", 0, say)
    mains.cuts(CUTS // 2)
