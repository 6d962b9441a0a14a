"""A guest that writes random bytes over everything it shares with its hypervisor, and goes on calling it."""

import asyncio
from typing import Any

from guest_node.guest import Guest


async def main(guest: Guest) -> None:
    calls: Any = guest.driver.calls  # the kernel's own object: this guest keeps to no interface
    area = calls.vcpu.area
    ram = calls._ram
    ring = calls.allocate_ring(4032)
    await calls.register_ring(ring, 9, 0x7FF4)
    rounds = 0
    while True:
        rounds += 1
        if rounds == 50:
            guest.log(f"{rounds} rounds of noise")
        for _ in range(20):
            at = guest.random.randrange(len(ram) - 4096)
            ram[at : at + 4096] = guest.random.randbytes(4096)
        # Frames of noise, announced by a tail that makes the hypervisor look at them; then a tail that cannot be.
        area.buffer[0x1000:0x5000] = guest.random.randbytes(0x4000)
        for tail in (area.sq_tail + 64, guest.random.getrandbits(32)):
            area.buffer[0x40:0x44] = (tail & 0xFFFFFFFF).to_bytes(4, "little")
            area.buffer[0x80:0x84] = area.buffer[0x240:0x244] if rounds % 2 else guest.random.randbytes(4)
            area.buffer[0x100:0x104] = guest.random.randbytes(4)
            calls.vcpu.ring()
            await asyncio.sleep(0.001)
