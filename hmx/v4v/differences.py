"""Where uXen's v4v departs from Argo: the numbers side by side, and the habits with the vector that shows each.

For whoever knows one of the two and meets the other.  The numbers are those that the code uses.  A habit names a case
of tests/golden/v4v.csv, where its effect is worked out by hand.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.argo import abi as argo
from hmx.argo.ring import ring_len_for
from hmx.errno import Errno
from hmx.v4v import abi as v4v


class Number(NamedTuple):
    """One number in both; None: Argo has no such thing."""

    aspect: str
    v4v: int
    argo: int | None
    source: str


class Habit(NamedTuple):
    """One behaviour in both, and the case that shows v4v's."""

    aspect: str
    v4v: str
    argo: str
    case: str
    source: str


_HEADERS = "uXen public/v4v.h; Xen public/argo.h"
_CODE = "uXen common/v4v.c; Xen common/argo.c"

NUMBERS: Final = (
    Number("hypercall number", v4v.HYPERCALL_V4V, argo.HYPERCALL_ARGO, _HEADERS),
    Number("signal: virtual interrupt or ISA line", v4v.IRQ_V4V, argo.VIRQ_ARGO, _CODE),
    Number("arguments after the command", 5, 4, _CODE),
    Number("smallest ring", argo.MIN_RING_LEN, argo.MIN_RING_LEN, _CODE),
    Number("largest ring", v4v.MAX_RING_LEN, ring_len_for(argo.MAX_RING_PAGES), _CODE),
    Number("unknown operation", Errno.ENOSYS, Errno.EOPNOTSUPP, _CODE),
    Number("caller not enabled: register and send", Errno.EINVAL, Errno.ENODEV, _CODE),
    Number("ring magic", v4v.RING_MAGIC, None, _HEADERS),
    Number("wildcard domid", v4v.DOMID_ANY, argo.DOMID_ANY, _HEADERS),
    Number("address size", v4v.ADDR.size, argo.ADDR.size, _HEADERS),
    Number("ring data entry size", v4v.RING_DATA_ENT.size, argo.RING_DATA_ENT.size, _HEADERS),
    Number("ring data header size", v4v.RING_DATA.size, argo.RING_DATA.size, _HEADERS),
    Number("iov size", v4v.IOV.size, argo.IOV.size, _HEADERS),
    Number("rx_ptr offset", v4v.RX_PTR, argo.RX_PTR, _HEADERS),
    Number("tx_ptr offset", v4v.TX_PTR, argo.TX_PTR, _HEADERS),
    Number("data offset", v4v.RING_HEADER.size, argo.RING_HEADER_SIZE, _HEADERS),
    Number("message header size", argo.MESSAGE_HEADER_SIZE, argo.MESSAGE_HEADER.size, _HEADERS),
    Number("flag EXISTS", v4v.NotifyFlag.EXISTS, argo.NotifyFlag.EXISTS, _HEADERS),
    Number("flag EMPTY", v4v.NotifyFlag.EMPTY, argo.NotifyFlag.EMPTY, _HEADERS),
    Number("flag SUFFICIENT", v4v.NotifyFlag.SUFFICIENT, argo.NotifyFlag.SUFFICIENT, _HEADERS),
)

HABITS: Final = (
    Habit("arguments over 32 bits", "cut to their low half", "-EINVAL", "send.len_low_half", _CODE),
    Habit("host callers", "-EPERM unless through the system path", "no such rule", "do.host_generic_path", _CODE),
    Habit("source domain of a send", "forced to the caller", "exact, else -EPERM", "send.source_forced", _CODE),
    Habit("whom a guest may address", "its device model", "whom XSM allows", "send.guest_to_guest", _CODE),
    Habit("partner by name", "a token that becomes a domid in the ring header", "none", "reg.host_token", _CODE),
    Habit("partner DM", "stays in guest memory, means domid 0", "none", "reg.dm", _CODE),
    Habit("wildcard ring", "the host's alone", "with mac-permissive", "reg.guest_any", _CODE),
    Habit("page count", "at least the length without its header", "length and header", "reg.len_past_pages", _CODE),
    Habit("a write past the pages", "-EFAULT", "cannot happen", "send.past_pages", _CODE),
    Habit("resize by registering again", "permitted", "-EEXIST", "reg.resize", _CODE),
    Habit("registering the same pages again", "the mapping stays", "pages go and come", "reg.again_same_pages", _CODE),
    Habit("a bad page then", "the ring loses its pages", "the ring goes", "reg.again_bad_page", _CODE),
    Habit("rings of a domain", "no limit", "128", "reg.many", _CODE),
    Habit("registration", "wakes who waits on any own ring", "never signals", "wake.placeholder", _CODE),
    Habit("ring before its registration", "a placeholder, made by the host", "none", "create.new", _CODE),
    Habit("send to a placeholder", "-EAGAIN, waits for 0 bytes", "none", "send.placeholder", _CODE),
    Habit("send to no ring", "signals the destination, -ECONNREFUSED", "-ECONNREFUSED alone", "send.no_ring", _CODE),
    Habit("send to no domain", "-ECONNREFUSED", "-ESRCH", "send.unknown_domain", _CODE),
    Habit("iovs of a send", "any number", "8", "sendv.many_iovs", _CODE),
    Habit("payload over any ring", "-EINVAL over 16 MiB", "-EMSGSIZE over 0xFFFFE0", "sendv.sum_over", _CODE),
    Habit("room in an empty ring", "len - 16", "len - 32", "notify.empty_48", _CODE),
    Habit("flag EMPTY on an empty ring", "never", "always", "notify.empty_ring", _CODE),
    Habit("rx_ptr in notify", "as it stands", "rounded up, 0 if outside", "notify.rx_raw_25", _CODE),
    Habit("armed wake-up", "flag PENDING", "no flag", "notify.used_17", _CODE),
    Habit("size over the largest message", "PENDING, for good", "flag EMSGSIZE", "notify.empty_49", _CODE),
    Habit("wildcard ring in notify", "no flag", "flag SHARED", "notify.wildcard", _CODE),
    Habit("waiters on a ring", "no limit", "32, then EBUSY", "notify.waiters_33", _CODE),
    Habit("notify entries", "any number", "256, then -EACCES", "notify.many", _CODE),
    Habit("forbidden notify entry", "ends the call with -EPERM", "with XSM's error", "notify.channel_abort", _CODE),
    Habit("suspend", "rings become placeholders", "nothing", "life.suspend", _CODE),
    Habit("resume", "the domain is signalled", "nothing", "life.resume", _CODE),
    Habit("death of a partner", "rings that name it stay", "rings that name it go", "life.kill_partner", _CODE),
)
