"""The configuration: TOML to typed values; every fault at once, with its key and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gateway.model import SECOND, Point

ReaderDriver = Literal["serial", "keyboard", "hidpos", "stdin"]
RelayDriver = Literal["gpio", "usbrelay", "serial", "modbus", "memory"]
InputDriver = Literal["gpio", "memory"]
OnFailure = Literal["admit", "deny"]
Framing = Literal["suffix", "stx_etx", "idle"]
Layout = Literal["us", "gb", "de", "fr", "no", "se", "dk", "fi", "es", "it"]
SerialBoard = Literal["lcus", "lcus_feedback", "numato", "kmtronic"]
ModbusBoard = Literal["waveshare", "lctech", "laskakit", "plain"]
SecondGrant = Literal["queue", "extend", "refuse"]
FailMode = Literal["secure", "safe"]
Bias = Literal["as_is", "disabled", "pull_up", "pull_down"]


@dataclass(slots=True, frozen=True)
class GatewayConfig:
    id: str
    data_dir: Path
    max_snapshot_age_h: float | None = None
    on_stale: OnFailure = "admit"
    on_ledger_failure: OnFailure = "admit"
    commit_deadline_ms: int = 150
    retain_days: int = 30
    admin_socket: Path | None = None
    """None: ``admin.sock`` in the data_dir."""
    sync_socket: Path | None = None
    """None: ``sync.sock`` in the data_dir."""
    ledger_memory_events: int = 10_000
    """How many events wait in memory while the ledger cannot be written."""
    unknown_codes_per_minute: int = 60
    """Unknown codes at one reader beyond this rate slow that reader down."""


@dataclass(slots=True, frozen=True)
class CentralConfig:
    url: str
    state_dir: Path | None = None
    """Of the sync: its token and its spool. None: ``sync`` in the data_dir."""
    ca_file: Path | None = None
    """The CAs that the central's certificate must come from; None: the system's."""
    client_cert: Path | None = None
    client_key: Path | None = None
    """None: the key stands in the file of the certificate."""


@dataclass(slots=True, frozen=True)
class WebConfig:
    listen: str = "127.0.0.1:9480"
    """Host and port of the sync's pages; port 0: any that is free."""

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(slots=True, frozen=True)
class RelayConfig:
    """One output of one board. Which fields matter depends on the driver; the loader checks that."""

    driver: RelayDriver
    chip: str | None = None
    """gpio: path, name or label of the chip."""
    line: int | str | None = None
    """gpio: offset or name of the line."""
    active_low: bool = False
    device: str | None = None
    """serial, modbus: path of the port. usbrelay: path of the hidraw node, or None to find the board."""
    board: str | None = None
    """serial: a SerialBoard; modbus: a ModbusBoard; usbrelay: the board's five-character id, or None."""
    channel: int = 1
    """Counted from 1 as printed on the board, whatever the wire says."""
    address: int = 1
    """modbus: the board's unit address."""
    baudrate: int = 9600


@dataclass(slots=True, frozen=True)
class InputConfig:
    """A contact that is read: the passage sensor, or the emergency input."""

    driver: InputDriver
    chip: str | None = None
    line: int | str | None = None
    active_low: bool = False
    bias: Bias = "as_is"
    debounce_ms: int = 10


@dataclass(slots=True, frozen=True)
class LaneConfig:
    name: str
    relay: RelayConfig
    pulse: int = 300_000
    """Length of the relay's pulse, microseconds."""
    passage: InputConfig | None = None
    """The passage sensor; None: passages are assumed."""
    timeout: int = 5 * SECOND
    """How long after the grant a passage is waited for (``passage.timeout_s``)."""
    second_grant: SecondGrant = "queue"
    fail: FailMode = "secure"
    """What the lane does when the gate stops or its driver fails: relay off, or held on."""
    emergency: InputConfig | None = None


@dataclass(slots=True, frozen=True)
class PointConfig:
    point: Point
    passage: InputConfig | None = None
    """A sensor for this direction alone (PASS A and PASS B); its time-out is the lane's."""


@dataclass(slots=True, frozen=True)
class ReaderConfig:
    name: str
    point: str
    driver: ReaderDriver
    device: str
    repeat_delay: int = 1_500_000
    """Microseconds."""
    # serial
    baudrate: int = 9600
    framing: Framing = "suffix"
    idle: int = 50_000
    """serial with framing idle: the silence that ends a code. keyboard: the silence that tears one. µs"""
    strip_aim: bool = False
    """Take a leading AIM identifier (]Q1 ...) off the code; hidpos always reports it apart."""
    # keyboard
    layout: Layout = "us"


@dataclass(slots=True, frozen=True)
class Config:
    gateway: GatewayConfig
    lanes: tuple[LaneConfig, ...]
    points: tuple[PointConfig, ...]
    readers: tuple[ReaderConfig, ...] = ()
    central: CentralConfig | None = None
    web: WebConfig = WebConfig()
    messages: dict[str, dict[str, str]] = field(default_factory=dict)
    """The venue's own texts: language to message key to text (``[messages.de]``)."""

    @property
    def state_dir(self) -> Path:
        """The sync's folder: as configured; else beside the data_dir, where the installation has made one
        for a sync with a user of its own; else in the data_dir."""
        own = self.central.state_dir if self.central is not None else None
        if own is not None:
            return own
        data_dir = self.gateway.data_dir
        beside = data_dir.with_name(f"{data_dir.name}-sync")
        return beside if beside.is_dir() else data_dir / "sync"
