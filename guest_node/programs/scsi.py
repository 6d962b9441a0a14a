"""A small SCSI disk in memory: the target behind a v4v storage unit, without I/O.

Specification: SPC-4 (INQUIRY, TEST UNIT READY, sense data in fixed format) and SBC-3 (READ CAPACITY, READ, WRITE, START
STOP UNIT).  Commands that are not here end with CHECK CONDITION, as those with a wrong address or length do.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

VENDOR: Final = b"Argosy"
PRODUCT: Final = b"v4v disk"
REVISION: Final = b"1"
SENSE_SIZE: Final = 18
INQUIRY_SIZE: Final = 36


class Status(IntEnum):
    """SCSI status bytes (SAM-5 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02


class Opcode(IntEnum):
    """The commands of this disk, the 10-byte forms where there are several (SPC-4 table E.2)."""

    TEST_UNIT_READY = 0x00
    INQUIRY = 0x12
    START_STOP_UNIT = 0x1B
    READ_CAPACITY = 0x25
    READ = 0x28
    WRITE = 0x2A


class Sense(NamedTuple):
    """Why a command failed: sense key, and additional sense code with qualifier 0."""

    key: int
    code: int
    source: str


NOT_READY: Final = Sense(0x2, 0x04, "SPC-4 4.5.6: logical unit not ready, cause not reportable")
ILLEGAL_OPCODE: Final = Sense(0x5, 0x20, "SPC-4 4.5.6: invalid command operation code")
ILLEGAL_ADDRESS: Final = Sense(0x5, 0x21, "SPC-4 4.5.6: logical block address out of range")
ILLEGAL_FIELD: Final = Sense(0x5, 0x24, "SPC-4 4.5.6: invalid field in CDB")
_CDB_SIZES: Final = (6, 10, 10, 0, 16, 12, 0, 0)  # by the top three bits of the opcode (SPC-4 4.3.5.1)


class Result(NamedTuple):
    """What a command ended with: data if it is good, sense if it is not."""

    status: Status
    data: bytes = b""
    sense: bytes = b""


def cdb(opcode: Opcode, address: int = 0, count: int = 0) -> bytes:
    """A CDB of 10 bytes for READ and WRITE of `count` blocks (SBC-3 5.9), or one without arguments."""
    if _CDB_SIZES[opcode >> 5] == 6:
        return bytes((opcode, 0, 0, 0, count, 0))
    return bytes((opcode, 0)) + address.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def sense_of(sense: Sense) -> bytes:
    """Sense data of a current error in fixed format (SPC-4 4.5.3)."""
    return bytes((0x70, 0, sense.key, 0, 0, 0, 0, SENSE_SIZE - 8, 0, 0, 0, 0, sense.code)).ljust(SENSE_SIZE, b"\0")


def read_sense(data: bytes) -> Sense:
    """Key and code of sense data in fixed format; what is cut off reads as 0."""
    padded = data.ljust(SENSE_SIZE, b"\0")
    return Sense(padded[2] & 0xF, padded[12], "reply")


class Disk:
    """`blocks` blocks of `block_size` bytes, all zero at first."""

    def __init__(self, blocks: int, block_size: int = 512) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.stopped = False  # START STOP UNIT said so
        self._medium = bytearray(blocks * block_size)

    def execute(self, command: bytes, data: bytes, room: int) -> Result:
        """Carry out a CDB of any content with `data` to write.  `room`: the most bytes that may be read at once."""
        opcode = command[0]
        if opcode not in _OPCODES:
            return _failed(ILLEGAL_OPCODE)
        if len(command) < _CDB_SIZES[opcode >> 5]:
            return _failed(ILLEGAL_FIELD)
        match opcode:
            case Opcode.INQUIRY:
                # The vital product data pages are not here: EVPD must be 0 (SPC-4 6.4.1).
                if command[1] & 1:
                    return _failed(ILLEGAL_FIELD)
                return Result(Status.GOOD, _INQUIRY[: min(int.from_bytes(command[3:5], "big"), room)])
            case Opcode.START_STOP_UNIT:
                self.stopped = not command[4] & 1
                return Result(Status.GOOD)
            case Opcode.READ_CAPACITY:
                last = (self.blocks - 1).to_bytes(4, "big") + self.block_size.to_bytes(4, "big")
                return Result(Status.GOOD, last[:room])
            case Opcode.READ | Opcode.WRITE:
                return self._move(command, data, room)
        return Result(Status.GOOD)

    def _move(self, command: bytes, data: bytes, room: int) -> Result:
        address, count = int.from_bytes(command[2:6], "big"), int.from_bytes(command[7:9], "big")
        if address + count > self.blocks:
            return _failed(ILLEGAL_ADDRESS)
        start, size = address * self.block_size, count * self.block_size
        if command[0] == Opcode.READ:
            if size > room:
                return _failed(ILLEGAL_FIELD)
            return Result(Status.GOOD, bytes(self._medium[start : start + size]))
        if len(data) != size:
            return _failed(ILLEGAL_FIELD)
        self._medium[start : start + size] = data
        return Result(Status.GOOD)


def _failed(sense: Sense) -> Result:
    return Result(Status.CHECK_CONDITION, sense=sense_of(sense))


_OPCODES: Final = frozenset(Opcode)
# Direct access block device, SPC-4, response format 2 (SPC-4 6.4.2).
_INQUIRY: Final = (
    bytes((0, 0, 6, 2, INQUIRY_SIZE - 5, 0, 0, 0)) + VENDOR.ljust(8) + PRODUCT.ljust(16) + REVISION.ljust(4)
)
