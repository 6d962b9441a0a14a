"""What travels between hypervisors about slots, and the operations of guests: layouts, arguments, answers."""

from __future__ import annotations

from typing import Any

import pytest

from hmx.argo.abi import DOMID_ANY
from hmx.errno import Errno
from hmx.slots import (
    DELEGATE,
    ENDPOINT,
    MAX_NAME,
    QUERY_ENDPOINT,
    DelegateCall,
    DelegateFlag,
    Endpoint,
    EndpointFlag,
    SlotOp,
    pack_delegate,
    pack_endpoint,
    parse_delegate,
    parse_endpoint,
)
from hv_node.domain import Domain
from hv_node.levels import delegation as delegation_module
from hv_node.levels import slot_ops, slot_table
from hv_node.levels.narrowing import Narrowing
from hv_node.levels.slot_messages import (
    Forget,
    ForgetSource,
    Grant,
    Message,
    MessageError,
    Narrow,
    Revoke,
    read,
    record,
)
from hv_node.levels.slot_table import (
    FIRST_DELEGATED,
    MAX_FAR_SLOTS,
    MAX_RIGHTS,
    SlotId,
    op_of,
    slot_of,
)
from hv_node.levels.slots import Hit
from hv_node.xsm import SiloXsm
from tests.hv_node.levels.lab import Host
from tests.hv_node.levels.slot_cases import (
    APP,
    FAR,
    P1,
    STORAGE,
    STORE,
    Nobody,
    call,
    passing,
    send,
)

MESSAGES = (
    Revoke(SlotId(APP, 0), 1),
    Narrow(SlotId(APP, 0), 1, Narrowing(((1, 5), (9, 9)), (1, 2), 0.5)),
    Forget(SlotId(APP, 3)),
    ForgetSource(APP),
    Grant(SlotId(APP, 0), 99, FAR, 7, None, STORE, 8, Narrowing(), True, (SlotId(STORE, 0), SlotId(APP, 0))),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_its_record(message: Message) -> None:
    """Lists, strings, numbers and None, and back."""
    found = record(message)
    assert read(found) == message
    for index in range(1, len(found)):
        wrong: object = [] if isinstance(found[index], int) else -1
        with pytest.raises(MessageError):
            read([*found[:index], wrong, *found[index + 1 :]])
    with pytest.raises(MessageError):
        read([*found, 0])


@pytest.mark.parametrize(
    "found",
    [
        None, [], "Revoke", [1], ["Escalate"], ["Revoke"], ["Revoke", [["hv1"], 1 << 24], 1], ["Revoke", [["hv1"]], 1],
        ["Revoke", [[], 1], 1], ["Revoke", [[1], 1], 1], ["Revoke", [["hv1"], 1], -1], ["Revoke", [["hv1"], True], 1],
        ["Revoke", [["hv1"], 1], 1 << 63], ["ForgetSource", [""]], ["ForgetSource", ["x"] * 128],
        ["Narrow", [["hv1"], 1], 1, [[[5, 4]], None, 0]], ["Narrow", [["hv1"], 1], 1, [[[5]], None, 0]],
        ["Narrow", [["hv1"], 1], 1, [[], None]], ["Narrow", [["hv1"], 1], 1, [[], [-1], 0]],
        ["Narrow", [["hv1"], 1], 1, [[], None, float("nan")]], ["Narrow", [["hv1"], 1], 1, [[], None, -1]],
        ["Narrow", [["hv1"], 1], 1, [[], None, True]], ["Narrow", [["hv1"], 1], 1, [[], None, 1e10]],
        ["Narrow", [["hv1"], 1], 1, [[[0, 1]] * 257, None, 0]],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_message(found: object) -> None:
    """Nothing of it is taken for granted."""
    with pytest.raises(MessageError):
        read(found)


def test_op_of_a_send_through_a_slot() -> None:
    """An envelope's `op`: bit 31, the length of the holder's path, the number; the holder lies on the source's path."""
    source = ("hv0", "hv1", "app")
    assert op_of(SlotId(source, 5)) == 0x8300_0005 and op_of(SlotId(source, 4)) == 0x8300_0004
    assert slot_of(0x8300_0005, source) == SlotId(source, 5)
    assert slot_of(0x8201_0000, source) == SlotId(("hv0", "hv1"), 0x10000)
    assert slot_of(3, source) is None and slot_of(0x0300_0003, source) is None  # a plain sendv
    assert slot_of(0x8000_0005, source) is None and slot_of(0x8400_0005, source) is None


def test_layouts() -> None:
    """Sizes, places and numbers that a guest's code relies on."""
    assert (SlotOp.DELEGATE, SlotOp.QUERY_ENDPOINT) == (0x40000010, 0x40000011)
    assert [flag.value for flag in (*DelegateFlag, EndpointFlag.REMOTE)] == [1, 2, 4, 8, 1]
    assert (DELEGATE.format, DELEGATE.size) == ("<IIIIIHH16I8I", 120)
    assert (QUERY_ENDPOINT.format, ENDPOINT.format, MAX_NAME) == ("<HHI", "<HHHH", 1024)
    asked = DelegateCall(1, 2, DelegateFlag(15), 3, 4, ((5, 6), (7, 8)), (9,))
    packed = pack_delegate(asked)
    assert DELEGATE.unpack(packed)[:12] == (1, 2, 15, 3, 4, 2, 1, 5, 6, 7, 8, 0)
    assert packed[24 + 64 :][:8] == b"\x09\0\0\0\0\0\0\0"
    assert parse_delegate(DELEGATE.unpack(packed)) == asked


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 31}, {"flags": 0x8000000F}, {"ranges": 9}, {"types": 9}, {"ranges": 1}, {"types": 0},
        {"flags": 14}, {"flags": 13}, {"flags": 11}, {"rate": 0}, {"first": 7}, {"rest": 1}, {"ranges": 0xFFFF},
    ],
    ids=str,
)  # fmt: skip
def test_a_delegate_that_is_none(change: dict[str, int]) -> None:
    """Unknown flags, wrong counts, ranges that end early, restrictions without their flag, rest that is not 0."""
    fields = list(DELEGATE.unpack(pack_delegate(DelegateCall(1, 2, DelegateFlag(15), 3, 4, ((5, 6), (7, 8)), (9,)))))
    places = {"flags": 2, "rate": 4, "ranges": 5, "types": 6, "first": 7, "rest": 30}
    for name, value in change.items():
        fields[places[name]] = value
    assert parse_delegate(tuple(fields)) is None


def test_refusals_of_the_operations() -> None:
    """The table, row by row."""
    assert [(row.op, row.rule, row.errno) for row in slot_ops.REFUSALS] == [
        (SlotOp.DELEGATE, "superfluous argument", Errno.EINVAL),
        (SlotOp.DELEGATE, "structure", Errno.EFAULT),
        (SlotOp.DELEGATE, "fields", Errno.EINVAL),
        (SlotOp.QUERY_ENDPOINT, "superfluous argument", Errno.EINVAL),
        (SlotOp.QUERY_ENDPOINT, "structure", Errno.EFAULT),
        (SlotOp.QUERY_ENDPOINT, "fields", Errno.EINVAL),
        (SlotOp.QUERY_ENDPOINT, "not for the caller", Errno.ESRCH),
        (SlotOp.QUERY_ENDPOINT, "buffer too small", Errno.EMSGSIZE),
        (SlotOp.QUERY_ENDPOINT, "buffer", Errno.EFAULT),
    ]


def test_delegate_from_guest_memory() -> None:
    """Arguments, structure, fields, then what delegation.py says."""
    host, app, _, other = passing()
    assert app.memory.write(0, 0x100, pack_delegate(call()))

    def op(a1: int, a2: int = 0, a3: int = 0, a4: int = 0) -> int:
        return slot_ops.delegate(host.delegation, app, a1, a2, a3, a4, 0).ret

    assert [op(0x100, 1), op(0x100, 0, 1), op(0x100, 0, 0, 1)] == [-Errno.EINVAL] * 3
    assert [op(4096 - 119), op(1 << 63)] == [-Errno.EFAULT] * 2
    assert app.memory.write(0, 0x400, pack_delegate(call())[:-1] + b"\x01")
    assert op(0x400) == -Errno.EINVAL
    assert not any(row.chain for row in host.slots.inspect())
    assert op(0x100) == 0
    assert isinstance(send(host, other, STORAGE), Hit)


def query(host: Host, caller: Domain, domid: int, size: int = 256, a2: int = 0x800, a4: int = 0, rest: int = 0) -> Any:
    """The answer, or the errno."""
    assert caller.memory.write(0, 0x100, QUERY_ENDPOINT.pack(domid, rest, 0))
    ret = slot_ops.query_endpoint(host.delegation, host.judge, caller, 0x100, a2, size, a4, 0)
    if ret < 0:
        return ret
    answer = caller.memory.read(0, a2, ret)
    assert answer is not None
    return parse_endpoint(bytes(answer))


def test_query_endpoint() -> None:
    """Path and label of a neighbour, of oneself and of a proxy; nobody is -ESRCH."""
    host = Host(P1)
    app, _ = host.guest(1, "app", "client_t"), host.guest(2, "store", "server_t")
    host.proxy(0x4000, FAR, "far_t")
    assert query(host, app, 2) == Endpoint("hv1/store", "server_t", EndpointFlag(0))
    assert query(host, app, 1) == Endpoint("hv1/app", "client_t", EndpointFlag(0))
    assert query(host, app, 0x4000) == Endpoint("hv2/far", "far_t", EndpointFlag.REMOTE)
    assert [query(host, app, domid) for domid in (3, 0x7FF0, DOMID_ANY, 0xFFFF)] == [-Errno.ESRCH] * 4
    assert [query(host, app, 2, size=24), query(host, app, 2, size=25) is None] == [-Errno.EMSGSIZE, False]
    assert [query(host, app, 2, a2=4096 - 24), query(host, app, 2, a4=1), query(host, app, 2, rest=1)] == [
        -Errno.EFAULT, -Errno.EINVAL, -Errno.EINVAL,
    ]  # fmt: skip
    assert app.memory.write(0, 0x100, QUERY_ENDPOINT.pack(2, 0, 1))
    assert slot_ops.query_endpoint(host.delegation, host.judge, app, 0x100, 0x800, 99, 0, 0) == -Errno.EINVAL
    assert slot_ops.query_endpoint(host.delegation, host.judge, app, 4090, 0x800, 99, 0, 0) == -Errno.EFAULT


def test_query_is_for_those_who_may_know() -> None:
    """Others get the answer of a domain that does not exist, the module's own errno notwithstanding."""
    host = Host(P1, SiloXsm())
    app, _ = host.guest(1, "app"), host.guest(2, "store")
    assert query(host, app, 2) == query(host, app, 99) == -Errno.ESRCH
    assert query(host, app, 1) == Endpoint("hv1/app", "", EndpointFlag(0))
    # Oneself is no secret, whatever the policy.
    host.judge = Nobody()
    assert query(host, app, 1) == Endpoint("hv1/app", "", EndpointFlag(0))
    assert query(host, app, 2) == -Errno.ESRCH


def test_a_confined_guest_learns_labels_only() -> None:
    """Of those whom it may answer; where they live it must not depend on."""
    host = Host(P1)
    host.guest(1, "app", "client_t")
    store = host.guest(2, "store", "server_t")
    host.proxy(0x4000, FAR, "far_t")
    host.slots.confine(2)
    assert [query(host, store, domid) for domid in (1, 2, 0x4000)] == [-Errno.ESRCH] * 3
    host.slots.delivered(SlotId(FAR, 0), 2, 0x4000, 9)
    assert query(host, store, 0x4000) == Endpoint("", "far_t", EndpointFlag(0))
    assert query(host, store, 1) == -Errno.ESRCH


def test_an_answer_too_long_to_be_told() -> None:
    """MAX_NAME bytes of text."""
    assert pack_endpoint(Endpoint("x" * MAX_NAME, "", EndpointFlag(0))) is not None
    assert pack_endpoint(Endpoint("x" * MAX_NAME, "y", EndpointFlag(0))) is None
    empty, one = ENDPOINT.pack(0, 0, 0, 0), ENDPOINT.pack(1, 0, 0, 0)
    for wrong in (b"", one, one + b"\xff", empty + b"x"):
        assert parse_endpoint(wrong) is None


def test_bounds_are_what_they_say() -> None:
    """Limits of the project's own making, as docs/addressing.md has them."""
    assert (MAX_RIGHTS, MAX_FAR_SLOTS, FIRST_DELEGATED, slot_table.LAST_NUMBER) == (256, 1024, 0x1_0000, 0xFF_FFFF)
    assert delegation_module.MAX_DELEGATED == 256
