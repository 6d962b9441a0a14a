"""When several things are wrong with one v4v call, the first check in uXen's order decides (uXen common/v4v.c).

The `order.` rows of tests/golden/v4v.csv list the checks of each operation in that order.  Every rule has a way to
provoke it here; each is provoked alone, and together with every later one of its operation.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hmx.errno import Errno
from hmx.v4v.abi import (
    DOMID_ANY,
    DOMID_DM,
    DOMID_SELF,
    DOMID_UUID,
    OPERATIONS,
    PFN_LIST,
    PFN_LIST_MAGIC,
    RING_DATA,
    RING_MAGIC,
    Op,
)
from hv_node.argo.model import Allocation
from hv_node.v4v.order import REFUSALS, refusal
from tests.golden import rows
from tests.hv_node.v4v.calls import END, GUEST, HOST, OTHER, RING, RING_LEN, Case
from tests.hv_node.v4v.world import QUERIES, token_of

Spoil = Callable[[Case], None]


def set_to(**fields: object) -> Spoil:
    def spoil(case: Case) -> None:
        for name, value in fields.items():
            setattr(case, name, value)

    return spoil


def without(domid: int) -> Spoil:
    return lambda case: case.off.add(domid)


def out_of_memory(what: Allocation, **fields: object) -> Spoil:
    def spoil(case: Case) -> None:
        case.oom.add(what)
        set_to(**fields)(case)

    return spoil


def first_size(size: int) -> Spoil:
    def spoil(case: Case) -> None:
        case.sizes = [max(size, case.sizes[0]), *case.sizes[1:]]

    return spoil


PROVOKE: dict[str, dict[str, Spoil]] = {
    "any": {"host outside the system path": set_to(system=False, caller=HOST)},
    "other": {"unknown operation": lambda _: None},
    "privileged": {"caller not the host": set_to(caller=GUEST)},
    "channel": {
        "guest names another than the device model": set_to(caller=GUEST, partner=OTHER),
        "reserved id": set_to(partner=DOMID_SELF),
        "domain to control unknown": set_to(partner=77),
        "domain not controlled": set_to(partner=HOST),
    },
    "register_ring": {
        "ring address unaligned": set_to(va=RING + 16),
        "caller without v4v": without(HOST),
        "ring header": set_to(va=END),
        "ring magic": set_to(magic=RING_MAGIC + 1),
        "length under 48 or unaligned": set_to(ring_len=32),
        "length over 16 MiB": set_to(ring_len=0x1000010),
        "partner token": set_to(partner=DOMID_UUID, token_va=END),
        "partner token unknown": set_to(partner=DOMID_UUID, token=bytes(16)),
        "channel": set_to(partner=HOST),
        "write-back of id": set_to(refused=RING + 8),
        "write-back of tx": set_to(refused=RING + 24, tx=1),
        "memory for ring record": out_of_memory(Allocation.RING_RECORD),
        "ring exists": set_to(existing=True, fail_exist=1),
        "page list": set_to(list_va=END),
        "page list magic": set_to(list_magic=PFN_LIST_MAGIC + 1),
        "fewer pages than the length": set_to(npages=1),
        "more than 4096 pages": set_to(npages=4097),
        "memory for page arrays": out_of_memory(Allocation.PAGE_ARRAYS),
        "page number": set_to(list_va=END - PFN_LIST.size),
        "page unfit": set_to(bad_page=True),
    },
    "unregister_ring": {
        "caller without v4v": without(GUEST),
        "ring header": set_to(va=END),
        "ring magic": set_to(magic=0),
        "channel": set_to(partner=OTHER),
        "no such ring": set_to(port=0x77),
    },
    "send": {
        "source address": set_to(a1=END),
        "destination address": set_to(a2=END),
        "caller without v4v": without(GUEST),
        "channel": set_to(named=OTHER),
        "destination unknown or without v4v": without(HOST),
        "no matching ring": set_to(port=0x77),
        "placeholder": set_to(placeholder=True),
        "iov": set_to(iovs=END),
        "iov over 16 MiB": first_size(0x1000001),
        "payload over 16 MiB": first_size(0x1000000),
        "payload over this ring": first_size(RING_LEN),
        "ring pages absent": set_to(absent=True),
        "ring full, memory for waiter": out_of_memory(Allocation.WAITER, full=True),
        "ring full": set_to(full=True),
        "payload": set_to(buffer=END),
    },
    "notify": {
        "caller without v4v": without(GUEST),
        "magic unreadable": set_to(query=END),
        "magic": set_to(query_magic=0),
        "header": set_to(query=END - 16),
        "entry": set_to(query=END - RING_DATA.size),
        "channel": set_to(named=OTHER),
        "write-back": set_to(refused=QUERIES + RING_DATA.size + 6),
    },
    "create_ring": {
        "ring id": set_to(a1=END),
        "channel": set_to(owner=DOMID_SELF),
        "owner unknown or without v4v": without(GUEST),
        "memory for ring record": out_of_memory(Allocation.RING_RECORD),
    },
}

CALLS: dict[str, tuple[tuple[int, int], ...]] = {
    "any": tuple((row.op, HOST) for row in OPERATIONS),
    "other": ((9, HOST), (Op.POKE, HOST), (Op.TEST, GUEST), (Op.DEBUG, GUEST), (0, GUEST)),
    "privileged": ((Op.CREATE_RING, GUEST), (Op.SIGNAL, GUEST)),
    "channel": ((Op.REGISTER_RING, HOST),),
    "register_ring": ((Op.REGISTER_RING, HOST),),
    "unregister_ring": ((Op.UNREGISTER_RING, GUEST),),
    "send": ((Op.SENDV, GUEST), (Op.SEND, GUEST)),
    "notify": ((Op.NOTIFY, GUEST),),
    "create_ring": ((Op.CREATE_RING, HOST),),
}
"""How each operation of the table is called: (number, caller)."""

#: what "channel" answers where the table refers to it
CHANNEL = {"create_ring": Errno.ENOENT}
IOV_RULES = {"iov", "iov over 16 MiB", "payload over 16 MiB"}
#: a ring that exists needs no new record; whoever waits for a placeholder needs memory for that too
EXCLUDED = {("memory for ring record", "ring exists"), ("placeholder", "ring full, memory for waiter")}
GOLDEN = [
    (row["op"].split(": ", 1)[0], row["op"].split(": ", 1)[1], row["after"])
    for row in rows("v4v.csv")
    if row["case"].startswith("order.")
]


def later(op: str, rule: str) -> list[str]:
    """Golden rules of the same operation after `rule`."""
    own = [name for other, name, _ in GOLDEN if other == op]
    return own[own.index(rule) + 1 :] if op not in ("channel", "any") else []


def test_the_code_has_the_golden_order() -> None:
    """Same rules, same order, same errnos."""
    assert [(row.op, row.rule, "-" if row.errno is None else row.errno.name) for row in REFUSALS] == GOLDEN


def test_every_rule_is_provoked() -> None:
    """Every golden rule has a way to provoke it, and nothing is provoked that the table does not know."""
    assert {(op, rule) for op, rules in PROVOKE.items() for rule in rules} == {(op, rule) for op, rule, _ in GOLDEN}


@pytest.mark.parametrize(
    ("op", "caller"),
    sorted({call for op, calls in CALLS.items() if op not in ("any", "other", "privileged") for call in calls})
    + [(Op.SIGNAL, HOST)],
)
def test_unspoilt_calls_succeed(op: int, caller: int) -> None:
    """What the other tests spoil works."""
    assert Case(op, caller).run() == {Op.SENDV: 16, Op.SEND: 8}.get(Op(op), 0)


@pytest.mark.parametrize(("op", "rule", "errno"), GOLDEN, ids=lambda cell: cell)
def test_alone_and_before_every_later_rule(op: str, rule: str, errno: str) -> None:
    """Precedence: the earlier rule wins over each later one that can be wrong at the same time."""
    expected = -(CHANNEL.get(op, Errno.EPERM) if errno == "-" else Errno[errno])
    for number, caller in CALLS[op]:
        if number == Op.SEND and rule in IOV_RULES:
            continue
        case = Case(number, caller)
        PROVOKE[op][rule](case)
        assert case.run() == expected, "alone"
        for other in later(op, rule):
            if (rule, other) in EXCLUDED or (number == Op.SEND and other in IOV_RULES):
                continue
            case = Case(number, caller)
            PROVOKE[op][other](case)
            PROVOKE[op][rule](case)  # last: where both set one field, the earlier rule's value stands
            assert case.run() == expected, f"with {other}"


@pytest.mark.parametrize("op", [Op.REGISTER_RING, Op.UNREGISTER_RING, Op.SEND, Op.SENDV, Op.NOTIFY])
def test_unprivileged_operations_are_the_guests_too(op: Op) -> None:
    """OPERATIONS: only create_ring and signal are the host's alone."""
    case = Case(op, GUEST, partner=DOMID_DM)
    assert case.run() >= 0


@pytest.mark.parametrize(
    ("partner", "result"), [(DOMID_ANY, 0), (0x7FF0, -Errno.ENOENT), (0x8000, -Errno.ENOENT), (0x7FEF, -Errno.ESRCH)]
)
def test_where_reserved_ids_begin(partner: int, result: int) -> None:
    """uXen validate_channel: from 0x7FF0 on, other than the wildcard."""
    assert Case(Op.REGISTER_RING, HOST, partner=partner).run() == result


def test_control_is_not_asked_of_a_token() -> None:
    """uXen ring_add: a partner found by its token is authorised by it, even the caller itself."""
    assert Case(Op.REGISTER_RING, HOST, partner=DOMID_UUID, token=token_of(HOST)).run() == 0


def test_an_unfit_page_before_a_faulting_number() -> None:
    """uXen find_ring_mfns: a page is judged before the next number is read."""
    case = Case(Op.REGISTER_RING, HOST, list_va=END - PFN_LIST.size - 8)
    assert case.run() == -Errno.EFAULT
    case.bad_page = True  # the second page, whose number cannot be read
    assert case.run() == -Errno.EFAULT
    case.list_va = END - PFN_LIST.size - 16
    assert case.run() == -Errno.EINVAL
    case.npages = 3
    assert case.run() == -Errno.EINVAL
    case.bad_page = False
    assert case.run() == -Errno.EFAULT


def test_a_rule_without_an_errno_has_no_answer() -> None:
    """The rows of "channel" hold it; asking elsewhere is a mistake in the code."""
    with pytest.raises(LookupError):
        refusal("send", "channel")
