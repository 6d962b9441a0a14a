"""echo and ping-pong: what comes back is what was sent, over streams and datagrams.

Source: the programs' docstrings; percentiles by nearest rank.
"""

from __future__ import annotations

from typing import Any

import pytest

from guest_node.guest import Guest
from guest_node.programs.ping_pong import _percentile
from hmx.argo.abi import Address
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab


@pytest.mark.parametrize("kind", ["stream", "datagram"])
@pytest.mark.parametrize("size", [1, 64, "20KiB"])
def test_round_trips(kind: str, size: int | str) -> None:
    """N round trips are N messages each way (frames of one send fit the default ring), and the echo ends
    with its session.
    """
    lab = Lab("client", "server")
    codes = simulate(
        lambda: lab.run(
            server=("builtin:echo", {"kind": kind}, 0.5),  # late, so that the client has to ask again
            client=("builtin:ping-pong", {"to": "server", "kind": kind, "count": 50, "size": size}, 0.0),
        )
    )
    assert codes == {"client": 0, "server": 0}
    results, served = lab.guests["client"].results, lab.guests["server"].results
    assert results["count"] == 50
    assert results["attempts"] > 1
    assert set(results) >= {"p50_us", "p99_us", "seconds", "bytes", "messages"}
    assert served["sessions"] == 1
    assert served["messages"] >= 50


def test_an_echo_serves_several_at_once() -> None:
    """Sessions run side by side; the program ends when all of them have ended."""
    lab = Lab("server", "a", "b", "c")
    client = ("builtin:ping-pong", {"to": "server", "count": 20}, 0.1)
    codes = simulate(lambda: lab.run(server=("builtin:echo", {"sessions": 3}, 0.0), a=client, b=client, c=client))
    assert codes == {"server": 0, "a": 0, "b": 0, "c": 0}
    assert lab.guests["server"].results["sessions"] == 3


def test_a_wrong_answer_is_a_mismatch() -> None:
    """ping-pong compares every byte: exit code 1, and the round trip is named."""

    async def liar(guest: Guest) -> int:
        async with await guest.argo.listen(7) as listener, await listener.accept() as connection:
            while data := await connection.receive():
                await connection.send(data if not data.startswith(b"\x03") else b"?" + data[1:])
        return 0

    lab = Lab("server", "client")
    codes = simulate(lambda: lab.run(server=(liar, {}, 0.0), client=("builtin:ping-pong", {"to": "server"}, 0.1)))
    assert codes == {"server": 0, "client": 1}
    assert lab.guests["client"].results["mismatch"] == 3


def test_a_server_that_goes_away_is_an_error() -> None:
    """A stream that ends early is no success."""

    async def short(guest: Guest) -> int:
        async with await guest.argo.listen(7) as listener, await listener.accept() as connection:
            await connection.receive()
        return 0

    lab = Lab("server", "client")
    codes = simulate(lambda: lab.run(server=(short, {}, 0.0), client=("builtin:ping-pong", {"to": "server"}, 0.1)))
    assert codes == {"server": 0, "client": 1}
    assert "no round trips with server" in lab.guests["client"].results["error"]


def test_an_echo_survives_clients_that_do_not_listen() -> None:
    """A datagram whose claimed source port is no ring cannot be answered; the next one can."""

    async def careless(guest: Guest) -> int:
        async with await guest.argo.datagram(5, partner=guest.peers["server"]) as socket:
            await socket.send_to(b"first", Address(7, guest.peers["server"]))
            await socket.receive()
        driver = guest.driver
        await driver.calls.sendv(Address(7, guest.peers["server"]), 4, (b"from nowhere",), 0x6447724D)
        async with await guest.argo.datagram(5, partner=guest.peers["server"]) as socket:
            for payload in (b"second", b""):
                await socket.send_to(payload, Address(7, guest.peers["server"]))
                assert (await socket.receive()).payload == payload
        return 0

    lab = Lab("server", "client")
    codes = simulate(lambda: lab.run(server=("builtin:echo", {"kind": "datagram"}, 0.0), client=(careless, {}, 0.1)))
    assert codes == {"server": 0, "client": 0}
    assert lab.guests["server"].results["messages"] == 4


@pytest.mark.parametrize(
    ("count", "percent", "rank"), [(1, 50, 0), (2, 50, 0), (3, 50, 1), (100, 99, 98), (1000, 99, 989)]
)
def test_percentiles(count: int, percent: int, rank: int) -> None:
    """Nearest rank: the smallest value that so many percent do not exceed."""
    assert _percentile([float(n) for n in range(count)], percent) == rank


def test_without_a_server() -> None:
    """Nobody there: exit code 1 after `within`."""
    lab = Lab("server", "client")

    async def main() -> dict[str, int]:
        lab.guest("server")
        arguments: dict[str, Any] = {"to": "server", "within": "100ms"}
        return await lab.run(client=("builtin:ping-pong", arguments, 0.0))

    assert simulate(main) == {"client": 1}
