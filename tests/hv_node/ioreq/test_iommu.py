"""The virtio-iommu's lists (VIRTIO 1.4, 5.13.6): what may be mapped, and what a device reaches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmx.errno import Errno
from hmx.virtio.iommu import Attach, Detach, IommuStatus, Map, MapFlag, Probe, Unmap
from hv_node.ioreq.iommu import ENDPOINTS, MAX_DOMAINS, MAX_MAPPINGS, Lists

OK, INVAL, RANGE, NOENT = IommuStatus.OK, IommuStatus.INVAL, IommuStatus.RANGE, IommuStatus.NOENT
RW = MapFlag.READ | MapFlag.WRITE
K = 4096


def lists() -> Lists:
    made = Lists()
    assert made.handle(Attach(1, 0)) is OK
    return made


def test_what_is_mapped_is_reached_and_nothing_else() -> None:
    """By page, by direction, over neighbouring mappings; an endpoint without a domain reaches nothing."""
    iommu = lists()
    assert iommu.handle(Map(1, 0x10000, 0x11FFF, 0x5000, RW)) is OK
    assert iommu.handle(Map(1, 0x12000, 0x12FFF, 0x9000, MapFlag.READ)) is OK
    assert iommu.guard(0, 0x10010, 16, True) == [(0x5010, 16)]
    assert iommu.guard(0, 0x11FF0, 32, False) == [(0x6FF0, 16), (0x9000, 16)]
    for denied in ((0, 0x11FF0, 32, True), (0, 0xFFFF, 2, False), (0, 0x12FFF, 2, False), (1, 0x10010, 16, False)):
        assert iommu.guard(*denied) == -Errno.EACCES
    assert iommu.faults == 4
    assert iommu.handle(Detach(1, 0)) is OK
    assert iommu.guard(0, 0x10010, 16, True) == -Errno.EACCES
    assert iommu.handle(Map(1, 0, K - 1, 0, RW)) is NOENT, "the domain went with its last endpoint"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Map(1, 0x10000, 0x10FFF, 0, RW), INVAL),
        (Map(1, 0xF000, 0x10FFF, 0, RW), INVAL),
        (Map(1, 0x0, 0xFFFFF, 0, RW), INVAL),
        (Map(1, 0x20000, 0x1FFFF, 0, RW), INVAL),
        (Map(1, 0x20000, 0x20FFF, 0, MapFlag.MMIO), INVAL),
        (Map(1, 0x20001, 0x21000, 0, RW), RANGE),
        (Map(1, 0x20000, 0x20FFE, 0, RW), RANGE),
        (Map(1, 0x20000, 0x20FFF, 1, RW), RANGE),
        (Map(1, 0x20000, 0x21FFF, (1 << 64) - K, RW), RANGE),
        (Map(9, 0x20000, 0x20FFF, 0, RW), NOENT),
        (Unmap(1, 0x10000, 0x10FFF), RANGE),
        (Unmap(1, 0x11000, 0x20000), RANGE),
        (Unmap(1, 0x0, 0xFFFFFF), OK),
        (Unmap(1, 0x30000, 0x30FFF), OK),
        (Unmap(9, 0, 1), NOENT),
        (Attach(1, ENDPOINTS), NOENT),
        (Attach(1, 0, 1), INVAL),
        (Attach(1, 0, 0, 1), INVAL),
        (Detach(1, ENDPOINTS), NOENT),
        (Detach(2, 0), INVAL),
        (Detach(1, 3), INVAL),
        (Probe(0), IommuStatus.UNSUPP),
    ],
)
def test_what_is_refused(request_: object, status: IommuStatus) -> None:
    """Overlaps INVAL, pages and ends RANGE, no such domain or endpoint NOENT; 0x10000 to 0x11fff is mapped."""
    iommu = lists()
    assert iommu.handle(Map(1, 0x10000, 0x11FFF, 0x5000, RW)) is OK
    assert iommu.handle(request_) is status


def test_limits() -> None:
    """A guest cannot fill the hypervisor: domains and mappings are few, and endpoints are those that there are."""
    iommu = Lists()
    for domain in range(MAX_DOMAINS + 4):
        assert iommu.handle(Attach(domain, domain % ENDPOINTS)) is OK, "an endpoint's old domain ends"
    assert len(iommu.domains) == ENDPOINTS
    domain = iommu.endpoints[0]
    for page in range(MAX_MAPPINGS):
        assert iommu.handle(Map(domain, 2 * page * K, 2 * page * K + K - 1, 0, RW)) is OK
    assert iommu.handle(Map(domain, 1 << 40, (1 << 40) + K - 1, 0, RW)) is IommuStatus.NOMEM


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(0, 6), st.integers(0, 15)), max_size=40))
def test_lists_agree_with_a_model(steps: list[tuple[bool, int, int, int]]) -> None:
    """Against a dictionary of pages: what is reached is what was mapped and not unmapped."""
    iommu, model, owner = lists(), dict[int, int](), dict[int, int]()
    for number, (is_map, first, more, phys) in enumerate(steps):
        pages = range(first, first + more + 1)
        if is_map:
            status = iommu.handle(Map(1, first * K, (first + more + 1) * K - 1, phys * K, RW))
            assert (status is OK) == (not any(page in model for page in pages))
            if status is OK:
                model.update({page: phys + at for at, page in enumerate(pages)})
                owner.update(dict.fromkeys(pages, number))
        else:
            whole = {owner[page] for page in pages if page in owner}
            split = any(page not in pages and by in whole for page, by in owner.items())
            assert (iommu.handle(Unmap(1, first * K, (first + more + 1) * K - 1)) is OK) == (not split)
            if not split:
                for page in pages:
                    model.pop(page, None)
                    owner.pop(page, None)
    for page in range(24):
        expected = [(model[page] * K + 5, 7)] if page in model else -Errno.EACCES
        assert iommu.guard(0, page * K + 5, 7, True) == expected
