"""A hypervisor without I/O: domains, doors, Argo and interrupts over shared pages that somebody else mapped.

The owner (a process shell, a simulation, a test) creates domains with their memory and vCPU areas, calls :meth:`run`
when a vCPU may have submitted frames, and rings the guests that :attr:`bells` names.  The hypervisor is the Argo
core's effect sink.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from hmx.argo.abi import Op
from hmx.memory import GuestMemory
from hmx.shm import words64
from hmx.trap import (
    CALL,
    FRAME_SIZE,
    RESULT,
    Arch,
    FrameFlag,
    Outcome,
)
from hmx.vcpu_area import CQ_ENTRIES, CQ_OFFSET, SQ_ENTRIES, SQ_OFFSET, HypervisorSide, Post, post_entry
from hmx.xen import Hypercall
from hv_node.argo.core import Argo
from hv_node.argo.options import ArgoOptions
from hv_node.domain import Domain, DomainTable
from hv_node.doors.executor import ZERO_EXTENDED, Executor
from hv_node.doors.outer import Stolen
from hv_node.doors.personality import Personality
from hv_node.doors.uxen_platform import PlatformDevice, storage_table
from hv_node.effects import PENDING
from hv_node.hvm import TURN, Hvm, Vcpu, arch_counters, count_levels
from hv_node.interrupts.evtchn import EventChannels
from hv_node.interrupts.gic import Gic
from hv_node.interrupts.notification import Notification
from hv_node.ioreq.hub import Ioreqs
from hv_node.ioreq.servers import Outcomes
from hv_node.levels.carried import FORWARD
from hv_node.levels.level import Level
from hv_node.pending import Pending
from hv_node.signals import Signals
from hv_node.v4v.core import V4v, V4vOptions
from hv_node.xsm import Xsm

V4V_SPEAKERS: Final = frozenset({"uxen", "ax", "whpx"})  # personalities that serve v4v beside Argo
CRASHED: Final = -1  # as what a vCPU of a crashed domain waits for: no frame has this number
SHOWN: Final = 16  # calls of a turn after which their answers are shown, so that a guest goes on beside us
_M32: Final = 0xFFFF_FFFF
_M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_LINK: Final = int(FrameFlag.LINK)
_DONE: Final = int(Outcome.DONE)
_CANCELED: Final = int(Outcome.CANCELED)
# The two words of a CALL frame's head, for an Argo call that is nothing special: kind and flags; register count.
_CALL_LINKED: Final = _LINK << 16
_NO_KIND: Final = 0xFFFF
_CALL_REGS: Final = 9
_ARGO_OP: Final = int(Hypercall.ARGO_OP)
_unpack_call: Final = CALL.unpack_from
_pack_result: Final = RESULT.pack_into
_SENDV: Final = int(Op.SENDV)
_NOTIFY: Final = int(Op.NOTIFY)


class Hypervisor(Pending, Signals):
    """One hypervisor: its domains, its personality, its Argo."""

    def __init__(
        self,
        personality: Personality,
        cpu: str,
        options: ArgoOptions,
        xsm: Xsm,
        on_event: Callable[..., None] | None = None,
        *,
        doors: Sequence[str] = ("hypercall", "hvc"),
        notifications: Sequence[str] = (),
        storage: Mapping[str, Sequence[int]] | None = None,
        parents: Sequence[Personality] = (),
        stolen: Stolen | None = None,
        device_models: Sequence[tuple[str, str]] = (),
        iommus: Sequence[str] = (),
    ) -> None:
        """`cpu` names the machine below; `doors` are those by which Argo is offered, `notifications` the experimental
        ways to be told beside VIRQ_ARGO.  `storage` has the v4v storage units of guests by name, which uXen's device
        table shows.  `parents` are the hypervisors around a nested one, the outermost first, with their doors;
        `stolen` carries calls of Argo that one of them takes from a guest (hv_node/doors/outer.py).
        `device_models` are (emulator, target) names: who may serve and reach whom as a device model; `iommus` names the
        guests that have a virtio-iommu (experimental).
        `on_event(code, *fields)` is told what a person may want to know; it must not raise.
        """
        self.personality = personality
        self._notifications = tuple(notifications)
        super().__init__(DomainTable())
        self.argo = Argo(self.domains, xsm, self, options)
        self.v4v = V4v(self.domains, self, V4vOptions(), self._v4v_signal) if personality.name in V4V_SPEAKERS else None
        self._executor = Executor(
            personality, cpu, self.argo, self.post, doors, notifications, self.v4v, parents, stolen
        )
        self.ioreqs: Ioreqs | None = None
        self._iommus = frozenset(iommus)
        if personality.abi == "xen":
            self.ioreqs = self._device_models(device_models)
        self.on_crash: Callable[[Domain], None] = lambda domain: self.kill_domain(domain.domid)
        self._depth = len(parents) + 1
        self._on_event = on_event
        self._storage = storage or {}
        self.levels: Level | None = None  # whoever makes one for this hypervisor enters it here
        self._speaks_v4v: Callable[[Domain], bool] = lambda _domain: True
        kind = self._executor.kind_of_xen_call()
        self._quick_kind = _NO_KIND if kind is None else int(kind)

    # -- domains ----

    def create_domain(
        self,
        domid: int,
        memory: GuestMemory,
        areas: Sequence[memoryview],
        *,
        name: str = "",
        is_control: bool = False,
        nested: bool = False,
    ) -> Hvm:
        """Create a domain with its memory and one zeroed vCPU area per vCPU.  ValueError for a domid in use.

        `nested`: it is a hypervisor itself (experimental, not upstream).
        """
        domain = Domain(domid, memory, is_control=is_control, name=name, nested=nested)
        self.domains.create(domain)
        notification = Notification(self.personality.arch, len(areas), self._notifications)
        hvm = Hvm(domain, EventChannels(len(areas)), notification, counters=arch_counters(self._depth))
        arch = self.personality.arch
        hvm.vcpus.extend(Vcpu(hvm, index, HypervisorSide(area, arch)) for index, area in enumerate(areas))
        if arch is Arch.AARCH64:
            hvm.gic = self._gic(hvm)
        hvm.evtchn.raised = partial(self._raise_port, hvm)
        self._hvms[domid] = hvm
        if self.ioreqs is not None and name in self._iommus:
            self.ioreqs.add_iommu(hvm)
        self.argo.domain_init(domain)
        if self.levels is not None:
            self.levels.domain_created(domain)
        if self.v4v is not None:
            v4v = self.v4v
            if self._speaks_v4v(domain):
                v4v.domain_init(domain)
            if self.personality.name == "uxen" and not is_control:
                table = storage_table(self._storage.get(name, ()))
                hvm.platform = PlatformDevice(table, lambda: v4v.state(domain) is not None)
        return hvm

    def _device_models(self, rights: Sequence[tuple[str, str]]) -> Ioreqs:
        executor = self._executor
        outcomes = Outcomes(self._finish, executor.done, executor.otherwise, executor.cancel, self.crash)
        hub = Ioreqs(self.personality.arch, self._hvms.get, self._interrupt, outcomes, rights)
        executor.more = hub.hypercall
        return hub

    def crash(self, hvm: Hvm, words: str) -> None:
        """Xen's domain_crash: the domain executes nothing more.  `on_crash`, which a shell may set, ends its guest and
        kills it; without one it is killed here.
        """
        self.event("domain-crashed", hvm.domain.name, hvm.domain.domid, words)
        for vcpu in hvm.vcpus:
            vcpu.blocked = CRASHED
        self.on_crash(hvm.domain)

    def _gic(self, hvm: Hvm) -> Gic:
        memory = hvm.domain.memory

        def post(index: int, register: int, new: bool) -> None:
            vcpu = hvm.vcpus[index]
            # Counted even where the bell coalesces: a guest that looks again takes what was listed meanwhile.
            hvm.counters.interrupts_posted += new
            vcpu.area.post(post_entry(Post.LR, register))
            if vcpu.area.guest_sleeps():
                self.bells[vcpu] = None

        def read(address: int, size: int) -> bytes | None:
            found = memory.read(0, address, size)
            return None if found is None else bytes(found)

        def merged() -> None:
            hvm.counters.interrupts_coalesced += 1

        gic = Gic([words64(vcpu.area.buffer) for vcpu in hvm.vcpus], post, read)
        gic.distributor.merged = merged
        return gic

    def kill_domain(self, domid: int) -> None:
        """The domain starts dying: its Argo state goes, its id still resolves.  Nothing happens twice."""
        hvm = self._hvms.pop(domid, None)
        if hvm is None:
            return
        for vcpu in hvm.vcpus:
            self.bells.pop(vcpu, None)
        if self.ioreqs is not None:
            self.ioreqs.died(hvm)
        self.argo.domain_kill(hvm.domain)
        if self.levels is not None:
            self.levels.domain_died(hvm.domain)
        if self.v4v is not None:
            self.v4v.domain_kill(hvm.domain)

    def free_domain(self, domid: int) -> None:
        """The last reference is gone: the id no longer resolves."""
        self.kill_domain(domid)
        self.domains.remove(domid)
        if self.levels is not None:
            self.levels.domain_freed(domid)

    def carry(self, mode: str, carry: Stolen) -> None:
        """Have the Argo of all guests served by the hypervisor around: `forward` takes the calls by our own doors,
        `steal` those by doors that it took from us (experimental, not upstream).
        """
        if mode == FORWARD:
            self._executor.forward = carry
            self._quick_kind = _NO_KIND
        else:
            self._executor.stolen = carry

    def keep_apart(self, hides_domid: Callable[[int], bool], speaks_v4v: Callable[[Domain], bool]) -> None:
        """Who is not told its own domain id, and who may use v4v, from now on (experimental, not upstream)."""
        self._executor.hides_domid, self._speaks_v4v = hides_domid, speaks_v4v
        self.end_v4v()

    def end_v4v(self) -> None:
        """Take v4v from domains that may not use it any more."""
        for hvm in self._hvms.values() if self.v4v is not None else ():
            if self.v4v is not None and not self._speaks_v4v(hvm.domain):
                self.v4v.domain_kill(hvm.domain)

    def hvm(self, domid: int) -> Hvm | None:
        """A living domain's state."""
        return self._hvms.get(domid)

    def counters(self) -> dict[str, dict[str, int]]:
        """`arch.*` counters by domain name."""
        return {hvm.domain.name: asdict(hvm.counters) for hvm in self._hvms.values()}

    # -- frames ----

    def run(self, vcpu: Vcpu, budget: int = TURN) -> int:
        """Execute up to `budget` submitted frames of one vCPU, in order, and a turn of its ITS if that has work.

        Returns how many frames were taken, and steps of the ITS: not 0 while there may be more of either.
        """
        area = vcpu.area
        if area.backlog and area.repost() and area.guest_sleeps():
            self.bells[vcpu] = None
        steps = 0
        if vcpu.hvm.gic is not None:
            vcpu.hvm.gic.distributor.fold(vcpu.index)
            steps = vcpu.hvm.gic.its.turn()
        count = area.submitted()
        if not count or vcpu.blocked is not None:
            return steps
        count = min(count, area.room() - vcpu.deferred, budget)
        taken, answered, hidden = 0, area.cq_tail, False
        while taken < count and vcpu.blocked is None:
            quick = self._run_calls(vcpu, min(count - taken, SHOWN))
            taken += quick
            hidden = not quick
            if hidden:
                head, regs = area.take()
                taken += 1
                self._step(vcpu, head, regs)
        if hidden:
            area.publish()
        if area.cq_tail != answered and area.guest_sleeps():  # else it waits for what is pending: it is rung then
            self.bells[vcpu] = None
        return taken + steps

    def _run_calls(self, vcpu: Vcpu, count: int) -> int:
        """The one path that matters: Argo calls by 64-bit VMCALL in which nothing is out of the ordinary.

        What `_step` does with such a frame, in one loop and with one look at each frame, and shows the answers.  Stops
        before the first frame that is anything else, or that a failure before it cancels.  Returns how many frames were
        executed.
        """
        if vcpu.deferred:
            return 0  # answers to ASYNC frames come in between
        area, domain, op = vcpu.area, vcpu.hvm.domain, self.argo.op
        buffer, alone = area.buffer, self._quick_kind
        head, tail, chain = area.sq_head, area.cq_tail, vcpu.chain
        done = messages = copied = 0
        self._merging = True
        while done < count:
            seq, what, shape, _, ctx, number, _, _, a2, a1, cmd, a4, _, a3 = _unpack_call(
                buffer, SQ_OFFSET + head % SQ_ENTRIES * FRAME_SIZE
            )
            if number != _ARGO_OP or shape != _CALL_REGS:
                break
            cmd &= _M32
            if (what != alone and (what != alone | _CALL_LINKED or not chain)) or (cmd != _SENDV and cmd != _NOTIFY):
                break
            done += 1
            head = (head + 1) & _M32
            ret = op(domain, cmd, a1, a2, a3, a4, vcpu, ctx)
            if ret is PENDING:
                vcpu.seq = vcpu.blocked = seq
                break
            if ret >= 0:
                chain = True
                if cmd == _SENDV:
                    messages += 1
                    copied += ret
            else:
                chain = False
                ret &= _M32 if cmd == _SENDV and ret in ZERO_EXTENDED else _M64
            _pack_result(buffer, CQ_OFFSET + tail % CQ_ENTRIES * FRAME_SIZE, seq, _DONE, 0, 0, 1, 0, ret)
            tail = (tail + 1) & _M32
        self.end_run()
        if done:
            area.sq_head, area.cq_tail, vcpu.chain = head, tail, chain
            area.publish()
            counters = vcpu.hvm.counters
            counters.exits += done
            counters.hypercalls += done
            counters.argo_ops += done
            counters.sent(copied, messages)
            if self._depth > 1:
                call = self._executor.resolve(alone, 0, 0)
                count_levels(counters, call.exits, call.resumes, done)
        return done

    def _finish(self, vcpu: Vcpu) -> None:
        vcpu.area.publish()
        if vcpu.area.guest_sleeps():
            self.bells[vcpu] = None

    def _step(self, vcpu: Vcpu, head: tuple[int, ...], regs: tuple[int, ...]) -> None:
        """Order one frame against its neighbours, then execute it."""
        seq = head[0]
        flags = head[2]
        if flags & _LINK:
            if vcpu.linked_to is not None:
                vcpu.linked_to.held.append((head, regs))
                vcpu.deferred += 1
                return
            if not vcpu.chain:
                vcpu.area.complete(seq, _CANCELED)
                return
        else:
            vcpu.linked_to = None
        vcpu.hvm.counters.exits += 1
        self._executor.execute(vcpu, head, regs)

    # -- the sink of the Argo core ----

    def event(self, code: str, *fields: Any) -> None:
        """Pass an event of the core on to the owner."""
        if self._on_event is not None:
            self._on_event(code, *fields)
