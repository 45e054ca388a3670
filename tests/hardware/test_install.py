"""The gateway is installed as README.md says."""

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest


def test_the_commands_of_the_readme_leave_a_gateway_that_runs(guest: Guest, gate: Gate) -> None:
    """After section Install, `gateway` is a command, its unit is known to systemd and its user exists."""
    assert "gateway" in guest.run("gateway --help", user="technician", timeout=120).ok()
    assert guest.run("systemctl is-enabled gateway").out.strip() == "enabled"
    assert guest.run("id -nG gateway").ok().split()
