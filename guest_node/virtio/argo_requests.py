"""Requests of the control plane that wait for their answers: VirtIO-Argo's front end.

virtio-msg promises one answer for each request; here it is found by its token, an ERROR answer is an exception with the
errno that it carries, and no answer in time is the end of the connection.  Experimental, docs/virtio-argo.md.
"""

from __future__ import annotations

import asyncio
from errno import EPROTO
from typing import Any, Final, TypeVar

from guest_node.virtio.argo_outbox import Outbox
from guest_node.virtio.frontend import DeviceBroken
from hmx.errno import Errno
from hmx.virtio.msg import (
    ERROR_LAYOUT,
    REASONS,
    BusId,
    Message,
    MessageError,
    MsgId,
    Refused,
    unpack_message,
    unpack_payload,
)
from hmx.virtio.msg_client import Call

_MEANING: Final = {row.reason: row.meaning for row in REASONS}

T = TypeVar("T")


class RequestRefused(DeviceBroken):
    """The back end answered one request with an error; nothing else is broken."""


class NoAnswer(Exception):
    """A request was not answered in time; the text says which."""


def broken_by(cause: BaseException) -> DeviceBroken:
    """What those are told who need a back end that ended with `cause`."""
    if isinstance(cause, DeviceBroken):
        return cause
    if isinstance(cause, OSError):
        return DeviceBroken(cause.errno or int(Errno.EIO), cause.strerror or str(cause))
    return DeviceBroken(int(Errno.EIO), str(cause))


class _Waiting:
    """A request, and the bytes of its answer."""

    __slots__ = ("call", "future")

    def __init__(self, call: Call[Any]) -> None:
        self.call = call
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class Requests:
    """All requests to the back end that is called `where`; `timeout` in seconds."""

    def __init__(self, where: str, timeout: float) -> None:
        self._where = where
        self._timeout = timeout
        self._waiting: dict[tuple[bool, int, int], _Waiting] = {}  # by bus or device, its number, token

    async def call(self, outbox: Outbox, call: Call[T]) -> T:
        """Send a request and return what its answer says.

        Raises RequestRefused, NoAnswer, DeviceBroken for an answer that makes no sense, and what `fail` was given.
        """
        request = call.request
        what = (BusId if request.bus else MsgId)(request.msg_id).name
        key = request.bus, request.dev_num, request.token
        waiting = self._waiting[key] = _Waiting(call)
        data = b""
        try:
            if not outbox.post(call.message):
                raise DeviceBroken(int(Errno.EAGAIN), "too many requests wait for room in the back end's ring")
            async with asyncio.timeout(self._timeout):
                await outbox.flush()
                data = await waiting.future
            return call.result(data)
        except TimeoutError:
            raise NoAnswer(f"{self._where} did not answer {what} within {self._timeout:g} s") from None
        except Refused as refused:
            errno = unpack_payload(ERROR_LAYOUT, unpack_message(data).payload).errno or EPROTO
            raise RequestRefused(errno, f"{self._where} refused {what}: {_MEANING[refused.reason]}") from None
        except MessageError as nonsense:
            raise DeviceBroken(EPROTO, f"{self._where} answered {what} with nonsense: {nonsense}") from None
        finally:
            self._waiting.pop(key, None)
            if waiting.future.done() and not waiting.future.cancelled():
                waiting.future.exception()

    def _find(self, message: Message) -> _Waiting | None:
        waiting = self._waiting.get((message.bus, message.dev_num, message.token))
        if waiting is None or waiting.future.done() or not waiting.call.answers(message):
            return None
        return waiting

    def greets(self, message: Message) -> bool:
        """Whether this answers a HELLO of ours."""
        waiting = self._find(message)
        return waiting is not None and waiting.call.request.msg_id == BusId.HELLO and message.bus

    def disowns(self, message: Message) -> bool:
        """Whether this answers a request of ours, to say that there is no connection.  Raises MessageError."""
        if message.msg_id != MsgId.ERROR or self._find(message) is None:
            return False
        errno: int = unpack_payload(ERROR_LAYOUT, message.payload).errno
        return errno == Errno.ENOTCONN

    def answered(self, message: Message, data: memoryview) -> None:
        """A response came, `data` being all of it.  One that nobody waits for (any more) is dropped."""
        waiting = self._find(message)
        if waiting is not None:
            waiting.future.set_result(bytes(data))

    def fail(self, broken: DeviceBroken) -> None:
        """No answer will come."""
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(broken)
