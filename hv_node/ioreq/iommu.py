"""A virtio-iommu that the hypervisor itself serves: it guards what a device model's DMA operations may reach.

Experimental: Xen has no IOMMU for its HVM guests.  The device is VIRTIO's (1.4, 5.13) behind virtio-mmio registers,
which the hypervisor emulates without an I/O request.  The guest attaches endpoints (a device is the endpoint of its
window's index) to domains and maps what their devices may reach; the hypervisor consults those lists before it copies.
An endpoint without a domain reaches nothing: there is no bypass.  Faults are refused and counted, not reported.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from hmx.errno import Errno
from hmx.ioreq import WINDOW_SIZE, WindowRow
from hmx.memory import FAULT, PAGE_SIZE, GuestMemory
from hmx.shm import fence
from hmx.virtio.chain import QueueBroken
from hmx.virtio.control import DeviceControl, Effects
from hmx.virtio.features import feature_set
from hmx.virtio.ids import DeviceId
from hmx.virtio.iommu import (
    CONFIG_SIZE,
    TAIL_SIZE,
    Attach,
    Detach,
    IommuConfig,
    IommuFeature,
    IommuStatus,
    Map,
    MapFlag,
    Unmap,
    pack_tail,
    unpack_request,
)
from hmx.virtio.layout import LayoutError
from hmx.virtio.memory import BadAddress, Buffer
from hmx.virtio.mmio import MmioRegisters
from hmx.virtio.queues import AnyDeviceQueue, device_queue, gather, scatter, total

ENDPOINTS: Final = 8
MAX_DOMAINS: Final = 64
MAX_MAPPINGS: Final = 4096
QUEUE_SIZE: Final = 64
_LARGEST: Final = 128  # bytes of a request that is looked at
_PAGE_MASK: Final = (1 << 64) - PAGE_SIZE
_KNOWN_FLAGS: Final = int(MapFlag.READ | MapFlag.WRITE)
_ENDS: Final = 1 << 64


class Mapping(NamedTuple):
    """virt_start..virt_end, inclusive, are as many bytes from phys_start on; `flags` say for what."""

    start: int
    end: int
    phys: int
    flags: int


class Lists:
    """What each domain has mapped, and which endpoints are attached to it."""

    def __init__(self) -> None:
        self.endpoints: dict[int, int] = {}
        self.domains: dict[int, list[Mapping]] = {}
        self.faults = 0

    def forget(self) -> None:
        """As after a reset."""
        self.endpoints.clear()
        self.domains.clear()

    def handle(self, request: object) -> IommuStatus:
        """One request."""
        match request:
            case Attach(domain, endpoint, flags, reserved):
                return self._attach(domain, endpoint, flags, reserved)
            case Detach(domain, endpoint):
                if endpoint >= ENDPOINTS:
                    return IommuStatus.NOENT
                if self.endpoints.get(endpoint) != domain:
                    return IommuStatus.INVAL
                self._detach(endpoint)
                return IommuStatus.OK
            case Map():
                return self._map(request)
            case Unmap(domain, start, end):
                return self._unmap(domain, start, end)
        return IommuStatus.UNSUPP

    def _attach(self, domain: int, endpoint: int, flags: int, reserved: int) -> IommuStatus:
        if flags or reserved:
            return IommuStatus.INVAL  # no bypass domains are offered
        if endpoint >= ENDPOINTS:
            return IommuStatus.NOENT
        if domain not in self.domains and len(self.domains) >= MAX_DOMAINS:
            return IommuStatus.NOMEM
        if self.endpoints.get(endpoint) not in (None, domain):
            self._detach(endpoint)
        self.endpoints[endpoint] = domain
        self.domains.setdefault(domain, [])
        return IommuStatus.OK

    def _detach(self, endpoint: int) -> None:
        """A domain ends with its last endpoint, and its mappings with it."""
        domain = self.endpoints.pop(endpoint)
        if domain not in self.endpoints.values():
            del self.domains[domain]

    def _map(self, wanted: Map) -> IommuStatus:
        mappings = self.domains.get(wanted.domain)
        if mappings is None:
            return IommuStatus.NOENT
        start, end, phys = wanted.virt_start, wanted.virt_end, wanted.phys_start
        size = end - start + 1
        if wanted.flags & ~_KNOWN_FLAGS or size <= 0:
            return IommuStatus.INVAL
        if start % PAGE_SIZE or size % PAGE_SIZE or phys % PAGE_SIZE or phys + size > _ENDS:
            return IommuStatus.RANGE
        at = bisect_right(mappings, (start, _ENDS, 0, 0))
        if (at and mappings[at - 1].end >= start) or (at < len(mappings) and mappings[at].start <= end):
            return IommuStatus.INVAL
        if len(mappings) >= MAX_MAPPINGS:
            return IommuStatus.NOMEM
        mappings.insert(at, Mapping(start, end, phys, wanted.flags))
        return IommuStatus.OK

    def _unmap(self, domain: int, start: int, end: int) -> IommuStatus:
        """What lies wholly inside goes; a range that would split a mapping is refused, and nothing goes."""
        mappings = self.domains.get(domain)
        if mappings is None:
            return IommuStatus.NOENT
        touched = [each for each in mappings if each.start <= end and each.end >= start]
        if any(each.start < start or each.end > end for each in touched):
            return IommuStatus.RANGE
        gone = set(touched)
        self.domains[domain] = [each for each in mappings if each not in gone]
        return IommuStatus.OK

    def guard(self, endpoint: int, address: int, size: int, write: bool) -> list[tuple[int, int]] | int:
        """The guest physical pieces behind a device's access, or -EACCES."""
        mappings = self.domains.get(self.endpoints.get(endpoint, -1), [])
        need = MapFlag.WRITE if write else MapFlag.READ
        pieces = []
        while size:
            at = bisect_right(mappings, (address, _ENDS, 0, 0)) - 1
            if at < 0 or mappings[at].end < address or not mappings[at].flags & need:
                self.faults += 1
                return -Errno.EACCES
            found = mappings[at]
            step = min(size, found.end - address + 1)
            pieces.append((found.phys + address - found.start, step))
            address += step
            size -= step
        return pieces


class _Memory:
    """A guest's RAM as a virtqueue of the hypervisor's needs it."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def load16(self, address: int) -> int:
        return int.from_bytes(self.read(address, 2), "little")

    def store16(self, address: int, value: int) -> None:
        self.write(address, value.to_bytes(2, "little"))

    def read(self, address: int, size: int) -> bytes:
        found = self._memory.read(0, address, size) if size >= 0 and 0 <= address < _ENDS else FAULT
        if found is FAULT:
            raise BadAddress(address, size)
        return bytes(found)

    def write(self, address: int, data: Buffer) -> None:
        if not 0 <= address < _ENDS or not self._memory.write(0, address, data):
            raise BadAddress(address, len(data))

    def fence(self) -> None:
        fence()


class IommuDevice:
    """The device of one guest, at `window`; `line(level)` drives its interrupt."""

    device_id: int = DeviceId.IOMMU
    features: int = feature_set(IommuFeature.MAP_UNMAP)
    queue_sizes: tuple[int, ...] = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(self, window: WindowRow, memory: GuestMemory, line: Callable[[bool], object]) -> None:
        self.lists = Lists()
        self._base = window.base
        self._memory = _Memory(memory)
        self._line = line
        self._queues: dict[int, AnyDeviceQueue] = {}
        effects = Effects(
            on_run=self._run,
            on_reset=self._reset,
            on_queue=self._queue,
            on_queue_reset=lambda index: self._queue(index, False),
            on_kick=lambda index, _data: self._serve(index),
        )
        self._control = DeviceControl(self, 0, effects)
        self._registers = MmioRegisters(self._control, line)

    def config(self) -> bytes:
        """Pages of 4 KiB and their multiples; all addresses, all domains."""
        return IommuConfig(_PAGE_MASK).pack()[:CONFIG_SIZE]

    def write_config(self, _offset: int, _data: bytes) -> bool:
        """Nothing may be written: BYPASS_CONFIG is not offered."""
        return False

    def covers(self, address: int, size: int) -> bool:
        """Whether an access is wholly inside the window."""
        return self._base <= address and address + size <= self._base + WINDOW_SIZE

    def load(self, address: int, size: int) -> int:
        """The guest reads."""
        return self._registers.load(address - self._base, size)

    def store(self, address: int, size: int, value: int) -> None:
        """The guest writes.  A kick is served before it goes on."""
        self._registers.store(address - self._base, size, value)

    def _queue(self, index: int, ready: bool) -> None:
        self._queues.pop(index, None)
        if ready:
            try:
                layout = self._control.queues[index].layout()
                self._queues[index] = device_queue(layout, self._control.negotiated, self._memory)
            except (QueueBroken, BadAddress) as why:
                self._control.needs_reset(str(why))

    def _run(self, running: bool) -> None:
        if running:
            self._serve(0)

    def _reset(self) -> None:
        self._queues.clear()
        self.lists.forget()

    def _serve(self, index: int) -> None:
        """Requests of a kick: as many as the queue has room for at most, since other vCPUs go on adding some."""
        queue = self._queues.get(index)
        if queue is None or index:
            return  # buffers of the event queue are kept, and none is used
        try:
            for _ in range(QUEUE_SIZE):
                chain = queue.pop()
                if chain is None:
                    break
                answer = self._answer(gather(self._memory, chain.readable, _LARGEST), total(chain.writable))
                scatter(self._memory, chain.writable, answer)
                queue.push(chain, len(answer))
            if queue.publish():
                self._control.used(index)
        except (QueueBroken, BadAddress) as why:
            self._control.needs_reset(str(why))

    def _answer(self, data: bytes, room: int) -> bytes:
        """The tail at the end of the writable part, or nothing where there is no request or no room for it."""
        if not TAIL_SIZE <= room <= PAGE_SIZE:
            return b""
        try:
            status = self.lists.handle(unpack_request(data))
        except LayoutError:
            return b""
        return bytes(room - TAIL_SIZE) + pack_tail(status)  # properties of an endpoint, of which there are none, first
