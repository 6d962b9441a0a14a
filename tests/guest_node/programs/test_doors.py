"""door-report and door-peer: every byte is checked on both sides, and both say what their kernel found."""

from __future__ import annotations

from typing import Any

import pytest

from guest_node.guest import Guest
from guest_node.programs.door_report import ANSWER, PORT, QUESTION, body
from hmx.argo.abi import Address
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab

REPORT, PEER = "builtin:door-report", "builtin:door-peer"
ASK: dict[str, Any] = {"to": "b", "count": 20, "size": 100, "burst": 4}


def test_bodies_can_be_computed_and_differ() -> None:
    """No message can pass for another one."""
    made = [body(kind, index, 100) for kind in (QUESTION, ANSWER) for index in range(50)]
    assert len(set(made)) == 100
    assert {len(each) for each in made} == {100}
    assert body(QUESTION, 3, 7) == body(QUESTION, 3, 100)[:7]


@pytest.mark.parametrize("burst", [1, 8, 50])
def test_the_exchange(burst: int) -> None:
    """Both end with 0, have counted the same, and found nothing wrong; a peer serves several."""

    async def main() -> None:
        lab = Lab("a", "b", "c")
        ask = {**ASK, "burst": burst}
        codes = await lab.run(a=(REPORT, ask, 0), c=(REPORT, ask, 0.05), b=(PEER, {"sessions": 2}, 0.02))
        assert codes == {"a": 0, "b": 0, "c": 0}
        results = {name: guest.results for name, guest in lab.guests.items()}
        assert (results["a"]["messages"], results["a"]["bytes"], results["a"]["wrong"]) == (40, 4000, 0)
        assert (results["b"]["messages"], results["b"]["bytes"], results["b"]["wrong"]) == (80, 8000, 0)
        assert results["b"]["sessions"] == 2

    simulate(main)


def test_a_wrong_answer_is_seen() -> None:
    """An echo does not do: the answer to a question is another text."""

    async def echo(guest: Guest) -> None:
        async with await guest.argo.datagram(PORT) as socket:
            while True:
                payload, source, _ = await socket.receive()
                await socket.send_to(payload, source)
                if not payload:
                    return

    async def main() -> None:
        lab = Lab("a", "b")
        assert (await lab.run(a=(REPORT, ASK, 0.01), b=(echo, {}, 0)))["a"] == 1
        assert lab.guests["a"].results["wrong"] == 20

    simulate(main)


def test_a_question_out_of_order_is_seen() -> None:
    """Lost, repeated and changed questions are wrong."""

    async def liar(guest: Guest) -> None:
        async with await guest.argo.datagram(partner=2) as socket:
            socket.connect(Address(PORT, 2))
            for payload in (body(QUESTION, 0, 9), body(QUESTION, 2, 9), b"x" * 9, b""):
                await socket.send_to(payload)
                await socket.receive()

    async def main() -> None:
        lab = Lab("a", "b")
        assert (await lab.run(a=(liar, {}, 0.01), b=(PEER, {}, 0)))["b"] == 1
        assert lab.guests["b"].results["wrong"] == 2

    simulate(main)


def test_nobody_there() -> None:
    """The reason is in the report."""

    async def main() -> None:
        lab = Lab("a", "b")

        async def nothing(_guest: Guest) -> None:
            pass

        codes = await lab.run(a=(REPORT, {**ASK, "within": 0.5}, 0), b=(nothing, {}, 0))
        assert codes["a"] == 1
        assert "no exchange with b" in lab.guests["a"].results["error"]

    simulate(main)


def test_what_was_found_and_what_it_took() -> None:
    """From the kernel's probe and counters."""

    async def main() -> None:
        lab = Lab("a", "b")
        found = {
            "hypervisors": [{"name": "kvm"}], "chosen": "msr", "notification": "line", "said": "no APIC",
            "doors": [{"door": "hypercall", "instruction": "VMCALL"}, {"door": "msr", "instruction": "WRMSR"}],
        }  # fmt: skip
        original = lab.guest

        def equipped(name: str, **arguments: Any) -> Guest:
            guest = original(name, **arguments)
            guest.probe = found
            guest.counters = lambda: {"arch": {"traps": 7, "interrupts_delivered": 3, "interrupts_spurious": 1}}
            return guest

        lab.guest = equipped  # type: ignore[method-assign]
        await lab.run(a=(REPORT, ASK, 0), b=(PEER, {}, 0))
        for guest in lab.guests.values():
            told = {key: guest.results[key] for key in ("door", "instruction", "notification", "hypervisors", "said")}
            assert told == {
                "door": "msr", "instruction": "WRMSR", "notification": "line", "hypervisors": ["kvm"],
                "said": "no APIC",
            }  # fmt: skip
            assert [guest.results[key] for key in ("traps", "interrupts", "spurious")] == [7, 3, 1]

    simulate(main)
