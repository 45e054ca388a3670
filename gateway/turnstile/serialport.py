"""Opening the serial port of a relay board, for this process alone."""

from __future__ import annotations

import errno
import fcntl
import termios

import serial

_REMEDY = {
    errno.ENOENT: "there is no such device: is the board plugged in? Use its path in /dev/serial/by-id"
    " or /dev/serial/by-path",
    errno.EACCES: "no permission: the gate's user must be in the device's group (often dialout)",
    errno.EAGAIN: "another program has it: is it configured twice, or held by ModemManager or brltty?",
    errno.EBUSY: "another program has it: is it configured twice, or held by ModemManager or brltty?",
    errno.ENOTTY: "this is not a serial port",
}


def open_port(device: str, baudrate: int, answer: float) -> serial.Serial:
    """The port, 8N1, locked both ways: flock keeps off programs that ask, TIOCEXCL those that do not.

    ``answer`` is how long a read waits, seconds. Raises OSError with the remedy.
    """
    try:
        port = serial.Serial(device, baudrate, timeout=answer, write_timeout=0.5, exclusive=True)
        fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
    except (OSError, termios.error) as fault:
        # pyserial lets termios.error through, which is no OSError, or puts a text of its own around it.
        first = [cause.args[0] for cause in (fault, fault.__context__) if cause and cause.args]
        number = next((arg for arg in first if isinstance(arg, int)), 0)
        raise OSError(_REMEDY.get(number, str(fault))) from fault
    return port
