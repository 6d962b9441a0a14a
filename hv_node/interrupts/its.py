"""The interrupt translation service: commands of its queue, and (DeviceID, EventID) -> LPI -> collection -> vCPU.

A device writes an EventID to GITS_TRANSLATER; its bus adds the DeviceID.  What is not mapped all the way is dropped and
counted.  Tables that the guest provides (GITS_BASER, the ITTs) are accepted and not used: mappings are kept here, as a
cache that never misses may.  Source: Arm IHI 0069 chapter 5; the names of errors are those of its table of command
errors.  Commands in error are counted and skipped (GITS_TYPER.SEIS is 0).

A queue holds up to 32768 commands, and one of them may concern every LPI.  A turn has :data:`STEPS` steps done,
whatever the guest stores in it; the owner calls :meth:`Its.turn` while there is more.  GITS_CREADR tells how far it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from hmx.gic import GITS, Field, decode, encode, find
from hv_node.interrupts.gicd import Distributor
from hv_node.interrupts.gicr import IIDR, Lpis, Memory

COMMAND: Final = struct.Struct("<4Q")
DEVICE_BITS: Final = 16
EVENT_BITS: Final = 16
COLLECTIONS: Final = 256
PAGE: Final = 4096
STEPS: Final = 64
"""Done in one turn: a step is a command, or a part of one that concerns many LPIs."""


class Command(NamedTuple):
    """A command: its number in bits 7:0 of the first doubleword, and where its arguments are."""

    name: str
    number: int
    fields: tuple[Argument, ...]


class Argument(NamedTuple):
    """An argument in bits `high` to `low` of doubleword `dw`, times `1 << shift`, plus `plus`."""

    name: str
    dw: int
    high: int
    low: int
    shift: int = 0
    plus: int = 0


_DEVICE: Final = Argument("device", 0, 63, 32)
_EVENT: Final = Argument("event", 1, 31, 0)
_COLLECTION: Final = Argument("collection", 2, 15, 0)
_VALID: Final = Argument("valid", 2, 63, 63)

# IHI 0069 5.3.  RDbase is a processor number, since GITS_TYPER.PTA is 0.
COMMANDS: Final[tuple[Command, ...]] = (
    Command("MOVI", 0x01, (_DEVICE, _EVENT, _COLLECTION)),
    Command("INT", 0x03, (_DEVICE, _EVENT)),
    Command("CLEAR", 0x04, (_DEVICE, _EVENT)),
    Command("SYNC", 0x05, (Argument("rdbase", 2, 50, 16),)),
    Command("MAPD", 0x08, (_DEVICE, Argument("bits", 1, 4, 0, 0, 1), Argument("itt", 2, 51, 8, 8), _VALID)),
    Command("MAPC", 0x09, (_COLLECTION, Argument("rdbase", 2, 50, 16), _VALID)),
    Command("MAPTI", 0x0A, (_DEVICE, _EVENT, Argument("intid", 1, 63, 32), _COLLECTION)),
    Command("MAPI", 0x0B, (_DEVICE, _EVENT, _COLLECTION)),
    Command("INV", 0x0C, (_DEVICE, _EVENT)),
    Command("INVALL", 0x0D, (_COLLECTION,)),
    Command("MOVALL", 0x0E, (Argument("rdbase", 2, 50, 16), Argument("rdbase2", 3, 50, 16))),
    Command("DISCARD", 0x0F, (_DEVICE, _EVENT)),
)

# IHI 0069, GITS_TYPER, GITS_CBASER, GITS_CTLR.
GITS_TYPER: Final[tuple[Field, ...]] = (
    Field("physical", 0, 0),
    Field("itt_entry_size", 7, 4),
    Field("id_bits", 12, 8),
    Field("device_bits", 17, 13),
    Field("hcc", 31, 24),
)
CBASER: Final[tuple[Field, ...]] = (Field("pages", 7, 0), Field("address", 51, 12), Field("valid", 63, 63))
CTLR: Final[tuple[Field, ...]] = (Field("enabled", 0, 0), Field("quiescent", 31, 31))


def parse(raw: bytes) -> tuple[Command, dict[str, int]] | None:
    """The command in 32 bytes and its arguments by name, or None for a number that means nothing."""
    quads = COMMAND.unpack(raw)
    for command in COMMANDS:
        if command.number == quads[0] & 0xFF:
            return command, {
                arg.name: (Field(arg.name, arg.high, arg.low).get(quads[arg.dw]) << arg.shift) + arg.plus
                for arg in command.fields
            }
    return None


class CommandError(Exception):
    """A command that cannot be executed; `args[0]` is the architecture's name of the error."""


class Event(NamedTuple):
    """What an EventID of a device is translated to."""

    lpi: int
    collection: int


class Its:
    """One ITS.  `memory` reads guest memory (the command queue)."""

    def __init__(self, dist: Distributor, lpis: Lpis, memory: Memory) -> None:
        self._dist = dist
        self._lpis = lpis
        self._memory = memory
        self.enabled = False
        self.cbaser = 0
        self.cwriter = 0
        self.creadr = 0
        self._devices: dict[int, int] = {}  # DeviceID -> EventID bits
        self._events: dict[int, dict[int, Event]] = {}  # by DeviceID, then EventID
        self._collections: dict[int, int] = {}  # collection -> vCPU
        self.errors: dict[str, int] = {}
        self._left = STEPS  # of this turn
        self._going: Iterator[None] | None = None  # what is left of the command at creadr, or of the one executed

    # -- translation ----

    def translate(self, device: int, event: int) -> tuple[int, int] | str:
        """(LPI, vCPU) of a device's event, or why it is dropped."""
        if not self.enabled:
            return "ITS disabled"
        if device not in self._devices:
            return "device not mapped"
        if (found := self._events[device].get(event)) is None:
            return "event not mapped"
        if (vcpu := self._collections.get(found.collection)) is None:
            return "collection not mapped"
        return found.lpi, vcpu

    def message(self, device: int, event: int) -> bool:
        """A write of `event` to GITS_TRANSLATER by `device`.  False: dropped and counted."""
        target = self.translate(device, event)
        if isinstance(target, str):
            self._dist.drop(target)
            return False
        return self._lpis.pend(*target)

    # -- commands ----

    def execute(self, raw: bytes) -> str | None:
        """Execute one command of 32 bytes to its end.  Returns the error's name (counted) or None."""
        error = self._begin(raw)
        while not self._ended():
            pass
        return error

    def _begin(self, raw: bytes) -> str | None:
        """Execute a command, but for what it leaves in `_going`."""
        parsed = parse(raw)
        try:
            if parsed is None:
                raise CommandError("COMMAND_UNKNOWN")
            self._execute(parsed[0].name, parsed[1])
        except CommandError as error:
            name = str(error)
            self.errors[name] = self.errors.get(name, 0) + 1
            return name
        return None

    def _ended(self) -> bool:
        """Do one more step of the command that was begun; True when nothing of it is left."""
        if self._going is not None:
            for _ in self._going:
                return False
            self._going = None
        return True

    def _mapped(self, name: str, args: dict[str, int]) -> Event:
        event = self._events.get(args["device"], {}).get(args["event"])
        if event is None:
            raise CommandError(f"{name}_UNMAPPED_INTERRUPT")
        return event

    def _vcpu(self, name: str, number: int) -> int:
        if number >= len(self._dist.lists):
            raise CommandError(f"{name}_PROCNUM_OOR")
        return number

    def _execute(self, name: str, args: dict[str, int]) -> None:
        match name:
            case "MAPD":
                self._mapd(args)
            case "MAPC":
                self._mapc(args)
            case "MAPTI":
                self._mapti(args, args["intid"])
            case "MAPI":
                self._mapti(args, args["event"])
            case "MOVI":
                event = self._mapped(name, args)
                if args["collection"] not in self._collections:
                    raise CommandError("MOVI_UNMAPPED_COLLECTION")
                self._events[args["device"]][args["event"]] = event._replace(collection=args["collection"])
                self._lpis.attach(event.lpi, self._collections[args["collection"]])
            case "INT":
                self._mapped(name, args)
                self.message(args["device"], args["event"])
            case "CLEAR":
                self._lpis.clear(self._mapped(name, args).lpi)
            case "DISCARD":
                self._lpis.clear(self._mapped(name, args).lpi)
                del self._events[args["device"]][args["event"]]
            case "INV":
                self._lpis.refresh(self._mapped(name, args).lpi)
            case "INVALL":
                if args["collection"] not in self._collections:
                    raise CommandError("INVALL_UNMAPPED_COLLECTION")
                self._going = self._lpis.refreshing(self._collections[args["collection"]])
            case "MOVALL":
                source, target = self._vcpu(name, args["rdbase"]), self._vcpu(name, args["rdbase2"])
                self._going = self._lpis.moving_all(source, target)
            case _:  # SYNC: every command has taken effect when it returns
                pass

    def _mapd(self, args: dict[str, int]) -> None:
        device = args["device"]
        if device >> DEVICE_BITS:
            raise CommandError("MAPD_DEVICE_OOR")
        if args["valid"] and args["bits"] > EVENT_BITS:
            raise CommandError("MAPD_ITTSIZE_OOR")
        # Mapped or not, the device starts with an empty table.
        self._events.pop(device, None)
        self._devices.pop(device, None)
        if args["valid"]:
            self._devices[device] = args["bits"]
            self._events[device] = {}

    def _mapc(self, args: dict[str, int]) -> None:
        collection = args["collection"]
        if collection >= COLLECTIONS:
            raise CommandError("MAPC_COLLECTION_OOR")
        if args["valid"]:
            self._collections[collection] = self._vcpu("MAPC", args["rdbase"])
        else:
            self._collections.pop(collection, None)

    def _mapti(self, args: dict[str, int], lpi: int) -> None:
        device, event, collection = args["device"], args["event"], args["collection"]
        if device not in self._devices:
            raise CommandError("MAPTI_UNMAPPED_DEVICE")
        if event >> self._devices[device]:
            raise CommandError("MAPTI_ID_OOR")
        if not self._lpis.exists(lpi):
            raise CommandError("MAPTI_PHYSICALID_OOR")
        if collection >= COLLECTIONS:
            raise CommandError("MAPC_COLLECTION_OOR")
        self._events[device][event] = Event(lpi, collection)
        if collection in self._collections:
            self._lpis.attach(lpi, self._collections[collection])

    # -- registers ----

    @property
    def busy(self) -> bool:
        """Whether commands wait that may be executed."""
        return self.enabled and self.creadr != self.cwriter and bool(self.cbaser >> 63)

    def turn(self) -> int:
        """Begin a turn: execute what the guest has queued.  Returns how many steps it took; 0: nothing to do."""
        self._left = STEPS
        return self._work()

    def _work(self) -> int:
        base = decode(CBASER, self.cbaser)
        size = (base["pages"] + 1) * PAGE
        begin = self._left
        while self._left and self.busy:
            self._left -= 1
            if self._going is None:
                raw = self._memory((base["address"] << 12) + self.creadr, COMMAND.size)
                if raw is None:
                    self.errors["QUEUE_FAULT"] = self.errors.get("QUEUE_FAULT", 0) + 1
                    self.creadr = self.cwriter
                    break
                self._begin(raw)
            if self._ended():
                self.creadr = (self.creadr + COMMAND.size) % size
        return begin - self._left

    def read(self, offset: int, size: int = 8) -> int:
        """What a guest loads from the control frame.  Zero in a hole."""
        row = find(GITS, offset, 3)
        if row is None or "R" not in row.access:
            return 0
        value = {
            "GITS_CTLR": encode(CTLR, enabled=int(self.enabled), quiescent=int(not self.enabled)),
            "GITS_IIDR": IIDR,
            "GITS_TYPER": encode(
                GITS_TYPER, physical=1, itt_entry_size=7, id_bits=EVENT_BITS - 1, device_bits=DEVICE_BITS - 1, hcc=255
            ),
            "GITS_CBASER": self.cbaser,
            "GITS_CWRITER": self.cwriter,
            "GITS_CREADR": self.creadr,
            "GITS_PIDR2": 3 << 4 | 0xB,
        }.get(row.name, 0)
        return value >> (offset - row.offset) * 8 & (1 << size * 8) - 1

    def write(self, offset: int, value: int, size: int = 8, device: int = 0) -> None:
        """A store to the ITS's frames; `device` is the DeviceID of who writes GITS_TRANSLATER."""
        row = find(GITS, offset, 3)
        shift = (offset - row.offset) * 8 if row else 0
        mask = (1 << size * 8) - 1 << shift
        match row.name if row else "":
            case "GITS_CTLR":
                self.enabled = bool(value & 1)
                self._work()
            case "GITS_CBASER" if not self.enabled:
                self.cbaser = self.cbaser & ~mask | value << shift & mask
                self.creadr = self.cwriter = 0
                self._going = None
            case "GITS_CWRITER":
                limit = (decode(CBASER, self.cbaser)["pages"] + 1) * PAGE
                wanted = self.cwriter & ~mask | value << shift & mask
                wanted &= ~(COMMAND.size - 1)
                if wanted < limit:  # beyond the queue: unpredictable, here ignored
                    self.cwriter = wanted
                    self._work()
            case "GITS_TRANSLATER":
                self.message(device, value & 0xFFFF_FFFF)
