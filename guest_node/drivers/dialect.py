"""What the driver core has to know of the transport under it: Argo, or uXen's v4v.

Rings, wake-ups and datagrams are the same; where rx_ptr stands in a ring, the message type of a datagram, how ports are
given out and what the device model is called are not.  Sources: OpenXT's Linux Argo driver; uXen public/v4v.h and its
Linux v4v library.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hmx.argo.consumer import Consumer
from hmx.v4v.abi import DOMID_DM, MESSAGE_TYPE_DGRAM
from hmx.v4v.consumer import V4vConsumer

ARGO_DGRAM: Final = 0x6447724D
DM_DOMID: Final = 0
"""The domain that a guest's device model runs in (uXen common/v4v.c, validate_channel)."""


class Dialect(NamedTuple):
    """A transport: its receiver, the type of its datagrams, whether ports are given out in sequence from 1 on (else at
    random, high), and a name (None: none) by which one domain is addressed, and that domain's id in messages.
    """

    consumer: type[Consumer]
    datagram: int
    ports_in_sequence: bool
    alias: int | None
    aliased: int

    def source(self, domid: int) -> int:
        """The id that stands in messages from the domain addressed as `domid`."""
        return self.aliased if domid == self.alias else domid


ARGO: Final = Dialect(Consumer, ARGO_DGRAM, False, None, 0)
V4V: Final = Dialect(V4vConsumer, MESSAGE_TYPE_DGRAM, True, DOMID_DM, DM_DOMID)
