"""Devices of a guest: which one is meant, how long it is waited for, that it is closed with the program."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from guest_node import devices
from guest_node.config import DeviceConfig
from guest_node.guest import Guest
from hmx.errno import Errno
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab

DEVICES = tuple(
    DeviceConfig(kind, service, instance, 7 + number)
    for number, (kind, service, instance) in enumerate(
        (("rng", "rng", 0), ("blk", "storage", 0), ("net", "net", 0), ("blk", "storage", 1))
    )
)


@pytest.mark.parametrize(
    ("which", "nth", "found"), [(0, 0, 0), (3, 0, 3), ("blk", 0, 1), ("blk", 1, 3), ("net", 0, 2), ("rng", 0, 0)]
)
def test_a_device_by_number_or_by_type(which: int | str, nth: int, found: int) -> None:
    """Numbers count all devices in the order of the file; a type means the first of it, or number `nth`."""
    assert devices.find(DEVICES, which, nth) is DEVICES[found]


@pytest.mark.parametrize(
    ("which", "nth", "words"),
    [
        (4, 0, "there is no device 4: the topology gives this guest 4"),
        (-1, 0, "there is no device -1: the topology gives this guest 4"),
        ("vsock", 0, "the topology gives this guest no vsock device"),
        ("blk", 2, "the topology gives this guest no blk device number 2"),
    ],
)
def test_a_device_that_is_not_there(which: int | str, nth: int, words: str) -> None:
    """A LookupError that says what there is."""
    with pytest.raises(LookupError) as caught:
        devices.find(DEVICES, which, nth)
    assert caught.value.args == (words,)


class Transport:
    """An open device of which only the end is looked at."""

    def __init__(self, closed: list[str]) -> None:
        self._closed = closed

    async def close(self) -> None:
        self._closed.append("device")


def run(
    monkeypatch: pytest.MonkeyPatch, errors: list[Errno], program: Any, closed: list[str]
) -> tuple[list[float], dict[str, int]]:
    """When opening was tried, and exit codes: it fails with each of `errors`, then goes well; there are DEVICES."""
    lab, tried = Lab("app"), list[float]()

    async def opening(guest: Guest, device: DeviceConfig) -> Any:
        assert device is DEVICES[1]
        tried.append(guest.time())
        if len(tried) <= len(errors):
            raise OSError(errors[len(tried) - 1], "not now")
        return Transport(closed)

    async def main(guest: Guest) -> int:
        guest.devices = DEVICES
        return int(await program(guest))

    monkeypatch.setitem(devices.OPENERS, DEVICES[1].transport, opening)
    return tried, simulate(lambda: lab.run(app=(main, {}, 0.0)))


def test_who_is_not_there_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """ECONNREFUSED: no ring yet; ESRCH: nobody behind the destination; ETIMEDOUT: no answer; ENODEV: no
    register window yet.  Pauses grow to 0.2 s."""
    closed: list[str] = []

    async def program(guest: Guest) -> int:
        await guest.virtio("blk", within=5)
        assert closed == []
        return 0

    answers = [Errno.ECONNREFUSED] * 5 + [Errno.ESRCH, Errno.ETIMEDOUT, Errno.ENODEV]
    tried, codes = run(monkeypatch, answers, program, closed)
    assert codes == {"app": 0}
    pauses = [after - before for before, after in pairwise(tried)]
    assert pauses == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.2, 0.2, 0.2], abs=1e-3)
    assert closed == ["device"], "closed when the program ends"


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `within` seconds the last error is the program's."""

    async def program(guest: Guest) -> int:
        with pytest.raises(ConnectionRefusedError):
            await guest.virtio(1, within=0.1)
        return 7

    tried, codes = run(monkeypatch, [Errno.ECONNREFUSED] * 100, program, [])
    assert codes == {"app": 7} and 0.05 < tried[-1] <= 0.1


def test_other_errors_are_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that time does not mend."""

    async def program(guest: Guest) -> int:
        with pytest.raises(PermissionError):
            await guest.virtio("blk")
        return 0

    tried, _ = run(monkeypatch, [Errno.EPERM], program, [])
    assert len(tried) == 1


def test_closed_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program raises is seen, and its device is closed all the same."""
    closed: list[str] = []

    async def program(guest: Guest) -> int:
        await guest.virtio(1)
        await asyncio.sleep(0)
        raise RuntimeError("mine")

    with pytest.raises(ExceptionGroup) as caught:
        run(monkeypatch, [], program, closed)
    assert str(caught.value.exceptions[0]) == "mine" and closed == ["device"]


def test_a_guest_without_devices_loads_nothing_of_virtio() -> None:
    """Guests start in milliseconds: what they do not use is not imported."""
    code = (
        "import sys, guest_node.node, guest_node.programs.echo, guest_node.programs.ping_pong\n"
        "late = 'guest_node.devices', 'guest_node.images'\n"
        "print([name for name in sys.modules if 'virtio' in name or name in late])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
