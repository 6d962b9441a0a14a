"""The hypervisor's side of attaching guests: descriptors made, sealed and handed over.

Every descriptor that is shared is created here, sized before it is sealed, so that no guest can shrink a mapping under
the hypervisor.  A guest proves itself by its user id and the token that the broker minted for it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import hmac
import mmap
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

from hmx.attach import (
    MAX_MESSAGE,
    AttachError,
    Loan,
    Reply,
    Request,
    pack_loan,
    pack_reply,
    unpack_loan,
    unpack_request,
)
from hmx.memory import FIRMWARE_BASE, PAGE_SIZE, MappedMemory
from hmx.trap import Arch
from hmx.vcpu_area import AREA_SIZE
from hv_node.config import DomainConfig

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_LOAN_FDS: Final = 4  # one is meant; more are seen, closed and refused
_UCRED: Final = struct.Struct("3i")


@dataclass(slots=True)
class Backing:
    """The host objects behind one domain: mappings, and the descriptors that its guest is given."""

    config: DomainConfig
    ram_fd: int
    areas_fd: int
    ram: mmap.mmap
    areas: mmap.mmap
    bells_in: list[int] = field(default_factory=list)  # eventfds: guest rings hypervisor
    bells_out: list[socket.socket] = field(default_factory=list)  # our ends: hypervisor rings guest
    guest_ends: list[socket.socket] = field(default_factory=list)

    def memory(self) -> MappedMemory:
        """The domain's RAM as the hypervisor core uses it."""
        return MappedMemory(self.ram)

    def area_views(self) -> list[memoryview]:
        """One view per vCPU area."""
        view = memoryview(self.areas)
        return [view[at : at + AREA_SIZE] for at in range(0, len(view), AREA_SIZE)]

    def descriptors(self) -> list[int]:
        """What the guest is given, in the order of the handshake."""
        fds = [self.ram_fd, self.areas_fd]
        for bell, end in zip(self.bells_in, self.guest_ends, strict=True):
            fds += (bell, end.fileno())
        return fds

    def close(self) -> None:
        """Close every descriptor.  Mappings go when the last view of them does."""
        for fd in (self.ram_fd, self.areas_fd, *self.bells_in):
            with contextlib.suppress(OSError):
                os.close(fd)
        for end in (*self.bells_out, *self.guest_ends):
            end.close()


def _memfd(name: str, size: int) -> tuple[int, mmap.mmap]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fd, mmap.mmap(fd, size)
    except BaseException:
        os.close(fd)
        raise


def borrow(fd: int, size: int) -> mmap.mmap:
    """Map memory that somebody else made.  AttachError unless it has that size and can never be smaller."""
    found = os.fstat(fd).st_size
    if found != size or not size or size % PAGE_SIZE:
        raise AttachError(f"memory of {size} bytes is announced, and the file has {found}")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if not seals & fcntl.F_SEAL_SHRINK:
        raise AttachError("memory that could be taken away again: it is not sealed against shrinking")
    try:
        return mmap.mmap(fd, size)
    except OSError as error:
        raise AttachError(f"memory cannot be mapped: {error.strerror}") from None


def read_loan(connection: socket.socket) -> tuple[Loan, mmap.mmap] | None:
    """What a nested hypervisor lends, mapped; None: the connection ended.  AttachError for anything else."""
    fds: list[int] = []
    try:
        data, ancillary, _, _ = connection.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(_LOAN_FDS * 4))
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                fds.extend(received)
        if not data:
            return None
        loan = unpack_loan(data, len(fds))
        return loan, borrow(fds[0], loan.memory)
    finally:
        for fd in fds:
            os.close(fd)


def create_backing(config: DomainConfig) -> Backing:
    """Make memory, vCPU areas and bells for a domain.  OSError when the host has none to give."""
    ram_fd, ram = _memfd(f"argosy-{config.name}-ram", config.memory)
    areas_fd, areas = _memfd(f"argosy-{config.name}-vcpus", config.vcpus * AREA_SIZE)
    ram[FIRMWARE_BASE : FIRMWARE_BASE + len(config.firmware)] = config.firmware
    backing = Backing(config, ram_fd, areas_fd, ram, areas)
    for _ in range(config.vcpus):
        backing.bells_in.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        ours, guests = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        guests.setblocking(False)
        backing.bells_out.append(ours)
        backing.guest_ends.append(guests)
    return backing


def listen(path: str) -> socket.socket:
    """The attach socket at `path`.  OSError when the path is taken or not writable."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_uid(connection: socket.socket) -> int:
    """User id of the process at the other end."""
    _pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def read_request(connection: socket.socket) -> Request | None:
    """The peer's request, or None when it closed without one.  AttachError for anything malformed."""
    data = connection.recv(MAX_MESSAGE)
    return unpack_request(data) if data else None


def check_token(expected: bytes | None, request: Request) -> None:
    """AttachError unless the broker granted this guest this token."""
    if expected is None:
        raise AttachError(f"nobody announced a guest {request.name!r} here")
    if not hmac.compare_digest(expected, request.token):
        raise AttachError(f"wrong attach token for guest {request.name!r}")


def refuse(connection: socket.socket, reason: str) -> None:
    """Tell the peer why and hang up."""
    say_no(connection, reason)
    connection.close()


def say_no(connection: socket.socket, reason: str) -> None:
    """Tell the peer why."""
    with contextlib.suppress(OSError):
        connection.send(pack_reply(Reply(True, 0, 0, 0, 0, reason)))


def share(connection: socket.socket, backing: Backing) -> None:
    """Show a device model the memory of a guest that it serves.  OSError when the device model is gone."""
    config = backing.config
    fds = array.array("i", [backing.ram_fd])
    message = pack_loan(Loan(config.name, config.domid, config.memory))
    connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def hand_over(connection: socket.socket, backing: Backing, arch: Arch) -> None:
    """Send the reply with the domain's descriptors.  OSError when the guest is gone."""
    config = backing.config
    reply = pack_reply(Reply(False, config.domid, config.vcpus, arch, config.memory, ""))
    fds = array.array("i", backing.descriptors())
    connection.sendmsg([reply], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    for end in backing.guest_ends:
        end.close()
