"""QEMU as a board whose processor sleeps: its devices, its memory and its interrupt lines, over the qtest protocol.

A test reads and writes what a driver in the guest would.  The accelerator "qtest", which has no processor at all, is
not in distributions' builds, so the one that is there waits for an interrupt that never reaches it.  The protocol is
lines of text on a stream socket: one answer, "OK" and perhaps a value, for each command, in order; between them stand
"IRQ raise N" and "IRQ lower N" for the lines that are watched.  Source: QEMU softmmu/qtest.c, whose comment lists the
commands.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hmx.virtio.memory import BadAddress, Buffer

PROGRAM: Final = shutil.which("qemu-system-arm")
_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()  # QEMU ends with us
PATIENCE: Final = 30.0  # seconds for one answer, or for QEMU to start
RAM_BASE: Final = 0x4000_0000  # of the machine "virt"
RAM_SIZE: Final = 64 << 20
USABLE: Final = RAM_BASE + (1 << 20)  # from here on nothing lies in it
_SLEEP: Final = 0xEAFFFFFD_E320F003  # A32: wfi; b to the wfi
_CHUNK: Final = 1 << 20


class QtestError(Exception):
    """QEMU refused a command, did not answer, or is gone."""


class Qtest:
    """One QEMU: `arguments` beside those that every board has.  A context manager; leaving it ends the process."""

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        if PROGRAM is None:
            raise QtestError("qemu-system-arm is not installed")
        self.raised: set[int] = set()  # interrupt lines that are up now
        self.raises = 0  # how often any went up
        self._log = directory / "qemu.log"
        listener = socket.socket(socket.AF_UNIX)
        try:
            path = directory / "qtest"
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(PATIENCE)
            monitor = directory / "qmp"
            command = [*_WITH_US, PROGRAM, "-M", "virt", "-m", f"{RAM_SIZE >> 20}M", "-display", "none", "-nodefaults"]
            command += ["-qtest", f"unix:{path}", "-qtest-log", "/dev/null"]
            command += ["-device", f"loader,addr={RAM_BASE:#x},data={_SLEEP:#x},data-len=8"]
            command += ["-device", f"loader,addr={RAM_BASE:#x},cpu-num=0"]
            command += ["-qmp", f"unix:{monitor},server=on,wait=off"]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stderr=log)
            try:
                self._socket = _accept(listener, self._process)
            except OSError as error:
                self._end()
                raise QtestError(f"QEMU does not come: {self._log.read_text()}") from error
        finally:
            listener.close()
        self._socket.settimeout(PATIENCE)
        self._pending = b""
        self._monitor = Monitor(monitor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End QEMU."""
        self._monitor.close()
        self._socket.close()
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    # -- the protocol ----

    def command(self, line: str) -> str:
        """Carry out one command; what its answer says after OK."""
        try:
            self._socket.sendall(line.encode() + b"\n")
            while True:
                answer = self._line()
                if not self._interrupt(answer):
                    break
        except OSError as error:
            raise QtestError(f"{line.split()[0]}: QEMU is gone: {error}; {self._log.read_text()}") from error
        word, _, rest = answer.partition(" ")
        if word != "OK":
            raise QtestError(f"{line.split()[0]}: {answer}")
        return rest

    def _line(self) -> str:
        while b"\n" not in self._pending:
            more = self._socket.recv(1 << 16)
            if not more:
                raise ConnectionResetError("end of stream")
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def _interrupt(self, line: str) -> bool:
        words = line.split()
        if words[0] != "IRQ":
            return False
        number = int(words[2])
        if words[1] == "raise":
            self.raised.add(number)
            self.raises += 1
        else:
            self.raised.discard(number)
        return True

    def wait(self, seconds: float) -> None:
        """Return when a watched line changed, or after so long."""
        if b"\n" not in self._pending:
            self._socket.settimeout(seconds)
            try:
                more = self._socket.recv(1 << 16)
            except TimeoutError:
                return
            finally:
                self._socket.settimeout(PATIENCE)
            if not more:
                raise QtestError(f"QEMU is gone: {self._log.read_text()}")
            self._pending += more
        while b"\n" in self._pending:
            line = self._line()
            if not self._interrupt(line):
                raise QtestError(f"unexpected: {line}")

    # -- accesses ----

    def load(self, address: int, width: int) -> int:
        """An access of 1, 2, 4 or 8 bytes."""
        return int(self.command(f"read{_LETTER[width]} {address:#x}"), 16)

    def store(self, address: int, width: int, value: int) -> None:
        """An access of 1, 2, 4 or 8 bytes."""
        self.command(f"write{_LETTER[width]} {address:#x} {value:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Bytes of memory."""
        if not size:
            return b""
        return base64.b64decode(self.command(f"b64read {address:#x} {size:#x}"))

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes in memory."""
        for at in range(0, len(data), _CHUNK):
            part = bytes(data[at : at + _CHUNK])
            self.command(f"b64write {address + at:#x} {len(part):#x} {base64.b64encode(part).decode()}")

    def fill(self, address: int, size: int, value: int = 0) -> None:
        """Store one byte many times."""
        if size:
            self.command(f"memset {address:#x} {size:#x} {value:#x}")

    def watch_interrupts(self) -> None:
        """Follow the input lines of the interrupt controller; line N is shared peripheral interrupt N."""
        self.command(f"irq_intercept_in {self._monitor.path_of('arm_gic')}")

    def qmp(self, name: str, **arguments: object) -> Any:
        """A command of the monitor, for what happens behind a device's back."""
        return self._monitor.execute(name, **arguments)


_LETTER: Final = {1: "b", 2: "w", 4: "l", 8: "q"}


def _accept(listener: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    listener.settimeout(0.1)
    while True:
        try:
            return listener.accept()[0]
        except TimeoutError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise


class Monitor:
    """QEMU's machine protocol (docs/interop/qmp-spec): one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rwb")
        self._file.readline()  # the greeting
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def execute(self, name: str, **arguments: object) -> Any:
        """The return value of a command.  Raises QtestError."""
        self._file.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QtestError(f"{name}: {answer['error']['desc']}")
        raise QtestError(f"{name}: QEMU is gone")

    def path_of(self, kind: str) -> str:
        """Where the device of this type is among those that the machine made itself."""
        where = "/machine/unattached"
        for found in self.execute("qom-list", path=where):
            if found["type"] == f"child<{kind}>":
                return f"{where}/{found['name']}"
        raise QtestError(f"there is no {kind}")


class QtestMemory:
    """The RAM of a board as the memory of a virtqueue (hmx.virtio.memory.QueueMemory).

    Each command is complete when its answer is there, so everything is in order without fences.
    """

    def __init__(self, board: Qtest, base: int = USABLE, size: int = RAM_BASE + RAM_SIZE - USABLE) -> None:
        self._board = board
        self._base = base
        self._end = base + size

    def _check(self, address: int, size: int) -> None:
        if size < 0 or not self._base <= address <= self._end - size:
            raise BadAddress(address, size)

    def load16(self, address: int) -> int:
        """A u16 at an even address."""
        if address & 1:
            raise BadAddress(address, 2)
        self._check(address, 2)
        return self._board.load(address, 2)

    def store16(self, address: int, value: int) -> None:
        """Store a u16 at an even address."""
        if address & 1:
            raise BadAddress(address, 2)
        self._check(address, 2)
        self._board.store(address, 2, value)

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes."""
        self._check(address, size)
        return self._board.read(address, size)

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes."""
        self._check(address, len(data))
        self._board.write(address, data)

    def fence(self) -> None:
        """Nothing is under way."""
