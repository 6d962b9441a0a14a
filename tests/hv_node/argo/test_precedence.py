"""When several things are wrong with one call, the first check in Xen's order decides.

tests/golden/argo_errno.csv lists the checks of each operation in that order, written from the specification alone.
Every rule there has a way to provoke it here; each rule is provoked alone, and together with every later one.
Rules that only a PV guest can meet are not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hmx.argo.abi import (
    DOMID_ANY,
    IOV,
    IOV_COMPAT,
    REGISTER_RING,
    RING_DATA,
    RING_DATA_ENT,
    SEND_ADDR,
    UNREGISTER_RING,
    Op,
)
from hmx.argo.ring import npages_for
from hmx.errno import Errno
from hmx.memory import PAGE_SIZE, PageType
from hv_node.argo.model import Allocation
from hv_node.argo.order import REFUSALS
from tests.golden import rows
from tests.hv_node.argo.policies import DenyingXsm
from tests.hv_node.argo.world import ARGS, DATA, GFNS, IOVS, NPAGES, RING_GFN, World

END = NPAGES * PAGE_SIZE
PORT, ME, PEER = 0x10, 1, 2
RING_LEN = 2 * PAGE_SIZE - 64
BIG = 1 << 32


@dataclass
class Case:
    """A call by domain 1 that would succeed, for rules to spoil."""

    cmd: int
    compat: bool = False
    a1: int = ARGS
    a2: int | None = None
    a3: int | None = None
    a4: int = 0
    pad: int = 0
    # register_ring, unregister_ring
    partner: int = PEER
    ring_len: int = RING_LEN
    extra_pages: int = 0
    existing: int | None = None  # length of a ring registered before
    page_type: PageType = PageType.RAM_RW
    nowrite: bool = False
    # sendv
    source: int = ME
    src_pad: int = 0
    target: int = PEER
    port: int = PORT
    lens: list[int] = field(default_factory=lambda: [8, 8])
    iov_pad: int = 0
    buffer: int = DATA
    full: bool = False
    waiters: int = 0
    absent: bool = False
    # notify
    nent: int = 1
    read_only: bool = False
    # surroundings
    off: bool = False
    not_permissive: bool = False
    denied: set[str] = field(default_factory=set)
    oom: set[Allocation] = field(default_factory=set)
    no_argo: set[int] = field(default_factory=set)
    ring_count: int | None = None

    def run(self) -> int:
        """Build the world, spoil it, make the call."""
        xsm = DenyingXsm()
        world = World(xsm=xsm)
        args = {1: self._register, 2: self._unregister, 3: self._sendv, 4: self._notify}.get(
            self.cmd, lambda _: (self.a1, 0, 0, self.a4)
        )(world)
        for domid in self.no_argo:
            world.domain(domid).argo = None
        mine = world.domain(ME).argo
        if self.ring_count is not None and mine is not None:
            mine.ring_count = self.ring_count
        argo = world.argo
        argo.enabled = not self.off
        argo.mac_permissive = not self.not_permissive
        argo.allocate = lambda what: what not in self.oom
        xsm.denied = self.denied
        op = argo.op_compat if self.compat else argo.op
        return op(world.domain(ME), self.cmd, *args)

    def _register(self, world: World) -> tuple[int, int, int, int]:
        if self.existing is not None:
            partner = DOMID_ANY if self.partner == DOMID_ANY else PEER
            assert world.register(ME, PORT, partner, self.existing, gfns=(30, 31)) == 0
        npages = npages_for(self.ring_len) + self.extra_pages
        world.register(ME, 0, PEER, 0, gfns=range(RING_GFN, RING_GFN + 2))  # lays out the array, is refused
        REGISTER_RING.pack_into(world.ram[ME], ARGS, PORT, self.partner, self.pad, self.ring_len)
        world.memory(ME).set_page(RING_GFN, self.page_type, nowrite=self.nowrite)
        return self.a1, GFNS if self.a2 is None else self.a2, npages if self.a3 is None else self.a3, self.a4

    def _unregister(self, world: World) -> tuple[int, int, int, int]:
        assert world.register(ME, PORT, PEER, RING_LEN) == 0
        UNREGISTER_RING.pack_into(world.ram[ME], ARGS, self.port, PEER, self.pad)
        return self.a1, self.a2 or 0, self.a3 or 0, self.a4

    def _peer_ring(self, world: World) -> None:
        assert world.register(PEER, PORT, ME, RING_LEN) == 0
        ring = world.ring(PEER, PORT, ME)
        if self.full:
            ring.tx = RING_LEN - 16
        for waiter in range(self.waiters):
            ring.pending[100 + waiter] = 1
        if self.absent:
            ring.pages = None

    def _sendv(self, world: World) -> tuple[int, int, int, int]:
        self._peer_ring(world)
        ram = world.ram[ME]
        SEND_ADDR.pack_into(ram, ARGS, 5, self.source, self.src_pad, self.port, self.target, self.pad)
        layout = IOV_COMPAT if self.compat else IOV
        for index, size in enumerate(self.lens):
            layout.pack_into(ram, IOVS + index * layout.size, self.buffer, size, self.iov_pad)
        return self.a1, IOVS if self.a2 is None else self.a2, 2 if self.a3 is None else self.a3, self.a4

    def _notify(self, world: World) -> tuple[int, int, int, int]:
        self._peer_ring(world)
        ram = world.ram[ME]
        if self.a1 and self.a1 <= END - 8:
            RING_DATA.pack_into(ram, self.a1, self.nent, 0)
        if self.a1 and self.a1 <= END - 28:
            RING_DATA_ENT.pack_into(ram, self.a1 + 8, PORT, PEER, 0, 0, 0, 16, 0)
        if self.read_only and self.a1 < END:
            world.memory(ME).set_page(self.a1 // PAGE_SIZE, PageType.RAM_RO)
        return self.a1, self.a2 or 0, self.a3 or 0, self.a4


def wide(case: Case) -> None:
    case.a4 |= BIG


def off(case: Case) -> None:
    case.off = True


def deny(hook: str) -> Callable[[Case], None]:
    return lambda case: case.denied.add(hook)


def out_of_memory(what: Allocation) -> Callable[[Case], None]:
    return lambda case: case.oom.add(what)


def without_argo(domid: int) -> Callable[[Case], None]:
    return lambda case: case.no_argo.add(domid)


def set_to(**fields: object) -> Callable[[Case], None]:
    def spoil(case: Case) -> None:
        for name, value in fields.items():
            setattr(case, name, value)

    return spoil


def add_flag(flag: int) -> Callable[[Case], None]:
    def spoil(case: Case) -> None:
        case.a4 |= flag

    return spoil


def exists_already(case: Case) -> None:
    case.a4 |= 1
    case.existing = case.existing or RING_LEN


def over_cap_in_sum(case: Case) -> None:
    case.lens = [max(case.lens[0], 0x20), 0xFFFFE0]


def full_with_waiters(case: Case) -> None:
    case.full = True
    case.waiters = 32


def full_without_memory(case: Case) -> None:
    case.full = True
    case.oom.add(Allocation.WAITER)


COMMON = {"arg_over_32_bits": wide, "argo_off": off, "xsm_enable": deny("enable")}

PROVOKE: dict[str, dict[str, Callable[[Case], None]]] = {
    "register_ring": {
        **COMMON,
        "npages_over_4096": set_to(a3=4097),
        "flags_unknown": add_flag(2),
        "fault_struct": set_to(a1=END - 8),
        "len_too_small": set_to(ring_len=32),
        "len_too_large": set_to(ring_len=0x1000010, a3=4096),
        "len_unaligned": set_to(ring_len=RING_LEN - 8),
        "npages_mismatch": set_to(extra_pages=1),
        "pad": set_to(pad=1),
        "wildcard_not_permissive": set_to(partner=DOMID_ANY, not_permissive=True),
        "xsm_any_source": lambda case: (set_to(partner=DOMID_ANY)(case), deny("register_any_source")(case))[0],
        "partner_unknown": set_to(partner=9),
        "xsm_single_source": deny("register_single_source"),
        "send_record_alloc": out_of_memory(Allocation.SEND_RECORD),
        "ring_alloc": out_of_memory(Allocation.RING_RECORD),
        "caller_no_argo": without_argo(ME),
        "partner_no_argo": without_argo(PEER),
        "ring_limit": set_to(ring_count=128),
        "exists_fail_exist": exists_already,
        "exists_resize": set_to(existing=RING_LEN - 16),
        "page_array_alloc": out_of_memory(Allocation.PAGE_ARRAYS),
        "fault_gfn": set_to(a2=END),
        "page_paged": set_to(page_type=PageType.PAGED),
        "page_shared": set_to(page_type=PageType.SHARED),
        "page_logdirty": set_to(page_type=PageType.LOGDIRTY),
        "page_mmio_direct": set_to(page_type=PageType.MMIO_DIRECT),
        "page_absent": set_to(page_type=PageType.INVALID),
        "page_not_ram": set_to(page_type=PageType.GRANT),
        "page_no_writable_ref": set_to(nowrite=True),
        "map_first_page": out_of_memory(Allocation.PAGE_MAPPING),
    },
    "unregister_ring": {
        **COMMON,
        "arg2_not_null": set_to(a2=8),
        "arg3_nonzero": set_to(a3=1),
        "arg4_nonzero": add_flag(1),
        "fault_struct": set_to(a1=END - 4),
        "pad": set_to(pad=1),
        "caller_no_argo": without_argo(ME),
        "no_ring": set_to(port=0x77),
    },
    "sendv": {
        **COMMON,
        "send_addr_fault": set_to(a1=END - 8),
        "niov_over_8": set_to(a3=9),
        "fault_iovs": set_to(a2=END - 20),
        "src_pad": set_to(src_pad=1),
        "dst_pad": set_to(pad=1),
        "src_not_caller": set_to(source=3),
        "dst_unknown": set_to(target=9),
        "xsm_send": deny("send"),
        "caller_no_argo": without_argo(ME),
        "dst_no_argo": without_argo(PEER),
        "no_ring": set_to(port=0x77),
        "iov_pad": set_to(iov_pad=1),
        "iov_too_long": lambda case: case.lens.__setitem__(0, 0xFFFFE1),
        "sum_too_long": over_cap_in_sum,
        "ring_too_small": lambda case: case.lens.__setitem__(0, max(case.lens[0], RING_LEN)),
        "ring_not_populated": set_to(absent=True),
        "ring_page_map": out_of_memory(Allocation.PAGE_MAPPING),
        "pending_full": full_with_waiters,
        "pending_alloc": full_without_memory,
        "ring_full": set_to(full=True),
        "fault_data": set_to(buffer=END),
    },
    "notify": {
        **COMMON,
        "arg2_not_null": set_to(a2=8),
        "arg3_nonzero": set_to(a3=1),
        "arg4_nonzero": add_flag(1),
        "caller_no_argo": without_argo(ME),
        "arg1_null": set_to(a1=0),
        "fault_header": set_to(a1=END),
        "nent_over_256": set_to(nent=257),
        "fault_entry": set_to(a1=END - 8),
        "xsm_send": deny("send"),
        "pending_alloc": full_without_memory,
        "fault_writeback": set_to(read_only=True),
    },
    "unknown_op": {**COMMON, "unknown_op": lambda _: None},
}
OPS = {"register_ring": 1, "unregister_ring": 2, "sendv": 3, "notify": 4, "unknown_op": 5}

# Rules that cannot be wrong in the same call: a partner is the wildcard or it is not, and a page has one type.
WILDCARD = {"wildcard_not_permissive", "xsm_any_source"}
SINGLE = {"partner_unknown", "xsm_single_source", "send_record_alloc", "partner_no_argo"}
PAGE = {rule for rule in PROVOKE["register_ring"] if rule.startswith("page_") and rule != "page_array_alloc"}

GOLDEN = [row for row in rows("argo_errno.csv") if not row["rule"].startswith("pv_")]


def expected(row: dict[str, str]) -> int:
    """The result that a golden row promises; where a security module decides, it is FLASK's here."""
    errno = row["errno"].split("|")[-1]
    return 0 if errno == "0" else -Errno[errno]


def compatible(first: str, second: str) -> bool:
    """Whether both rules can be provoked in one call."""
    pair = {first, second}
    return not (pair <= PAGE or (pair & WILDCARD and pair & SINGLE))


def later_rules(row: dict[str, str]) -> list[str]:
    """Golden rules of the same operation after `row`."""
    order = int(row["order"])
    return [other["rule"] for other in GOLDEN if other["op"] == row["op"] and int(other["order"]) > order]


def test_the_table_is_covered() -> None:
    """Every golden rule can be provoked here, and nothing is provoked that the table does not know."""
    known = {(row["op"], row["rule"]) for row in GOLDEN}
    assert known == {(op, rule) for op, rules in PROVOKE.items() for rule in rules}


@pytest.mark.parametrize(
    "case",
    [Case(cmd) for cmd in (1, 2, 3, 4)] + [Case(cmd, compat=True) for cmd in (3, 4)],
    ids=lambda case: f"{case.cmd}{'-compat' if case.compat else ''}",
)
def test_unspoilt_calls_succeed(case: Case) -> None:
    """What the other tests spoil works."""
    assert case.run() == (16 if case.cmd == Op.SENDV else 0)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['op']}-{row['rule']}")
def test_alone_and_before_every_later_rule(row: dict[str, str]) -> None:
    """Precedence: the earlier rule wins over each later one that can be wrong at the same time."""
    op, rule = row["op"], row["rule"]
    widths = [False, True] if op == "sendv" and rule != "arg_over_32_bits" else [False]
    for compat in widths:
        case = Case(OPS[op], compat=compat)
        PROVOKE[op][rule](case)
        assert case.run() == expected(row), "alone"
        for later in later_rules(row):
            if not compatible(rule, later):
                continue
            case = Case(OPS[op], compat=compat)
            PROVOKE[op][later](case)
            PROVOKE[op][rule](case)  # last: where both set one field, the earlier rule's value stands
            assert case.run() == expected(row), f"with {later}, compat {compat}"


@pytest.mark.parametrize("cmd", [0, 5, 6, 7, 8, 9, 99, 0xFFFFFFFF])
def test_unknown_operations(cmd: int) -> None:
    """5 was v4v's sendv, 6 to 8 are OpenXT's: all unknown here, for both widths of caller."""
    assert Case(cmd).run() == Case(cmd, compat=True).run() == -Errno.EOPNOTSUPP


@pytest.mark.parametrize("cmd", [1, 2, 3, 4])
def test_compat_arguments_have_32_bits(cmd: int) -> None:
    """The upper half of a 32-bit caller's registers does not exist."""
    assert Case(cmd, compat=True, a4=BIG).run() == Case(cmd, compat=True).run() >= 0


# -- within groups that the table gives in one order, the first element decides ---------------------------------------

PAGE_ERRORS = {
    PageType.RAM_RO: Errno.EINVAL,
    PageType.LOGDIRTY: Errno.EAGAIN,
    PageType.MMIO_DIRECT: Errno.EPERM,
    PageType.PAGED: Errno.EAGAIN,
    PageType.SHARED: Errno.EAGAIN,
    PageType.INVALID: Errno.EINVAL,
    PageType.GRANT: Errno.EINVAL,
}


@pytest.mark.parametrize("first", PAGE_ERRORS, ids=lambda page: page.name)
@pytest.mark.parametrize("second", PAGE_ERRORS, ids=lambda page: page.name)
def test_the_first_unfit_page_decides(first: PageType, second: PageType) -> None:
    """Page numbers are read and judged one by one."""
    world = World()
    world.memory(ME).set_page(24, first)
    world.memory(ME).set_page(25, second)
    assert world.register(ME, PORT, PEER, RING_LEN, gfns=(24, 25)) == -PAGE_ERRORS[first]


@pytest.mark.parametrize("bad", PAGE_ERRORS, ids=lambda page: page.name)
def test_an_unfit_page_before_a_faulting_number(bad: PageType) -> None:
    """The array ends at the end of memory after one number: its page is judged before the next number faults."""
    world = World()
    world.memory(ME).set_page(24, bad)
    world.ram[ME][END - 8 :] = (24).to_bytes(8, "little")
    REGISTER_RING.pack_into(world.ram[ME], ARGS, PORT, PEER, 0, RING_LEN)
    assert world.op(ME, Op.REGISTER_RING, ARGS, END - 8, 2) == -PAGE_ERRORS[bad]
    world.memory(ME).set_page(24, PageType.RAM_RW)
    assert world.op(ME, Op.REGISTER_RING, ARGS, END - 8, 2) == -Errno.EFAULT


def test_a_page_beyond_the_domain() -> None:
    """A page number that names nothing is -EINVAL, however large; one page too far, too."""
    for gfn in (NPAGES, 1 << 52, (1 << 64) - 1):
        assert World().register(ME, PORT, PEER, RING_LEN, gfns=(24, gfn)) == -Errno.EINVAL


@pytest.mark.parametrize(
    ("iovs", "result"),
    [
        ([(0xFFFFE0, 0), (0x20, 0), (1, 1)], -Errno.EMSGSIZE),  # the sum passes the cap at the second
        ([(0xFFFFE0, 0), (0, 1), (0x20, 0)], -Errno.EINVAL),
        ([(0xFFFFE0, 0), (0xFFFFE1, 0)], -Errno.EINVAL),  # too long by itself comes before the sum
        ([(0xFFFFE0, 0), (0xFFFFE0, 1)], -Errno.EINVAL),
        ([(8, 0), (8, 0), (8, 1)], -Errno.EINVAL),
        ([(0xFFFFE0, 0), (0, 0)], -Errno.EMSGSIZE),  # the cap itself is legal; this ring is too small for it
    ],
)
def test_iovs_are_judged_in_order(iovs: list[tuple[int, int]], result: int) -> None:
    """Pad, length and running sum of one iov come before the next iov."""
    world = World()
    assert world.register(PEER, PORT, ME, RING_LEN) == 0
    for index, (size, pad) in enumerate(iovs):
        IOV.pack_into(world.ram[ME], IOVS + 16 * index, DATA, size, pad)
    SEND_ADDR.pack_into(world.ram[ME], ARGS, 5, ME, 0, PORT, PEER, 0)
    assert world.op(ME, Op.SENDV, ARGS, IOVS, len(iovs)) == result


# -- the code's table beside the golden one ----------------------------------------------------------------------------

# golden rule -> rule of hv_node/argo/order.py, where the names differ; several golden rules may be one check in Xen.
NAMES = {
    "any": {
        "arg_over_32_bits": "arg3 or arg4 over 32 bits",
        "argo_off": "Argo off",
        "xsm_enable": "XSM enable",
        "caller_no_argo": "caller without Argo",
    },
    "register_ring": {
        "npages_over_4096": "page count over 4096",
        "flags_unknown": "unknown flag",
        "fault_struct": "structure",
        "len_too_small": "length, page count or pad",
        "len_too_large": "length, page count or pad",
        "len_unaligned": "length, page count or pad",
        "npages_mismatch": "length, page count or pad",
        "pad": "length, page count or pad",
        "wildcard_not_permissive": "wildcard without mac-permissive",
        "xsm_any_source": "XSM register_any_source",
        "partner_unknown": "partner unknown",
        "xsm_single_source": "XSM register_single_source",
        "send_record_alloc": "memory for send record",
        "ring_alloc": "memory for ring record",
        "partner_no_argo": "partner without Argo",
        "ring_limit": "too many rings",
        "exists_fail_exist": "ring exists",
        "exists_resize": "ring resized",
        "page_array_alloc": "memory for page arrays",
        "fault_gfn": "page frame array",
        "map_first_page": "ring page mapping",
        **dict.fromkeys(sorted(PAGE), "page unfit"),
    },
    "unregister_ring": {
        **dict.fromkeys(("arg2_not_null", "arg3_nonzero", "arg4_nonzero"), "superfluous argument"),
        "fault_struct": "structure",
        "pad": "pad",
        "no_ring": "no such ring",
    },
    "sendv": {
        "send_addr_fault": "addresses",
        "niov_over_8": "iov count over 8",
        "fault_iovs": "iov array",
        "src_pad": "address pad",
        "dst_pad": "address pad",
        "src_not_caller": "source is another domain",
        "dst_unknown": "destination unknown",
        "xsm_send": "XSM send",
        "dst_no_argo": "destination without Argo",
        "no_ring": "no matching ring",
        "iov_pad": "iov pad",
        "iov_too_long": "iov too long",
        "sum_too_long": "payload over any ring",
        "ring_too_small": "payload over this ring",
        "ring_not_populated": "ring pages absent",
        "ring_page_map": "ring page mapping",
        "pending_full": "ring full, too many wait",
        "pending_alloc": "ring full, memory for waiter",
        "ring_full": "ring full",
        "fault_data": "payload",
    },
    "notify": {
        **dict.fromkeys(("arg2_not_null", "arg3_nonzero", "arg4_nonzero"), "superfluous argument"),
        "fault_header": "header",
        "nent_over_256": "more than 256 entries",
        "fault_entry": "entry",
        "xsm_send": "XSM send",
        "pending_alloc": "memory for waiter",
        "fault_writeback": "write-back",
    },
    "unknown_op": {"unknown_op": "unknown operation"},
}


@pytest.mark.parametrize("op", list(PROVOKE))
def test_the_code_table_agrees_with_the_golden_one(op: str) -> None:
    """Row by row: same errno, same order, and no row on either side without its counterpart."""
    mine = [row for row in REFUSALS if row.op in ("any", op if op != "unknown_op" else "other")]
    index = {row.rule: place for place, row in enumerate(mine)}
    names = NAMES["any"] | NAMES[op]
    places = []
    for golden in GOLDEN:
        if golden["op"] != op or golden["errno"] == "0":
            continue
        row = mine[index[names[golden["rule"]]]]
        places.append(index[row.rule])
        if row.errno is not None:
            assert golden["errno"] == row.errno.name, golden
    assert places == sorted(places), "another order"
    assert set(places) == set(range(len(mine))), "a row that the golden table does not have"
