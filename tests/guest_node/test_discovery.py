"""uXen's storage discovery from a guest: a bitmap of units, and nothing where nobody answers (uXen uxenstor)."""

from __future__ import annotations

import pytest

from guest_node.kernel.discovery import storage_ports
from tests.guest_node.test_probe import X86, World, simulate


@pytest.mark.parametrize(("personality", "units", "found"), [
    ("uxen", (), ()), ("uxen", (0, 3), (0xD0000, 0xD0003)), ("uxen", (2, 9), (0xD0002,)), ("xen", (), ()),
])  # fmt: skip
def test_units_are_found_by_their_ports(personality: str, units: tuple[int, ...], found: tuple[int, ...]) -> None:
    """The Linux driver's four hosts; all ones mean that nobody is there, not that every unit is."""

    async def main() -> None:
        world = World(personality, X86, "intel", ("hypercall",))
        kernel = await world.guest(5)
        world.machine.core._executor.storage_units = lambda _: units  # type: ignore[method-assign, assignment]
        assert await storage_ports(kernel.vcpus[0]) == found

    simulate(main())
