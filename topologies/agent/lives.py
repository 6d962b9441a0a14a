"""What nodes are told at their start: for a later life that is not what the plan says, above all of domains.

A guest that is started again needs a fresh domain.  Its hypervisor makes one when told so, unless it was started again
itself: then it starts with the domains of all guests that come with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterable
from typing import Any

from hv_node.config import RemoteConfig
from topologies.agent.core import LabCore
from topologies.agent.nodes import Node
from topologies.agent.toolstack import CREATED, FREED, MET, REFUSED, NoDomid, Toolstack
from topologies.runtime import NodeKind, NodeState


class Lives:
    """Start arguments and domains.

    Args:
        core: the lab.
        tell: says something to a node, at best.
        living: names of nodes that have a process, kept up to date by its owner.
        start: starts a node in one of the next turns.
    """

    def __init__(
        self,
        core: LabCore,
        tell: Callable[[str, list[Any]], None],
        living: Collection[str],
        start: Callable[[str], None],
    ) -> None:
        self._core = core
        self._tell = tell
        self._living = living
        self._start = start
        self._toolstack = Toolstack(core.spec.nodes, tell)

    def start(self, name: str, now: int) -> None:
        """Start `name`, a guest that was there before as soon as it has its fresh domain."""
        node = self._node(name)
        again = node.spec.kind is NodeKind.GUEST and node.state is NodeState.RESTARTING
        if not again or node.domid != self._toolstack.domids[name]:  # its hypervisor was started with a domain for it
            self._start(name)
            return
        try:
            self._toolstack.renew(name, now)
        except NoDomid as error:
            self._core.not_restarted(name, str(error), now)

    def config(self, name: str, now: int) -> Any:
        """The start arguments of `name`, which is about to start.  Raises NoDomid."""
        node = self._node(name)
        config, again = node.spec.config, node.state is NodeState.RESTARTING
        if node.spec.kind is NodeKind.GUEST:
            node.domid = self._toolstack.domids[name]
            return dataclasses.replace(config, epoch=self._core.epoch, domid=node.domid, peers=self._peers(name))
        if not again:
            return config
        if node.spec.kind is NodeKind.BROKER:
            return dataclasses.replace(config, epoch=self._core.epoch + 1)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(config.attach_path)  # it could not do so itself
        nested = [domain for domain in config.domains if domain.nested]
        wanted = [domain for domain in config.domains if not domain.nested and self._core.comes_again(domain.name)]
        fresh = [dataclasses.replace(domain, domid=self._toolstack.give(domain.name, now)) for domain in wanted]
        return dataclasses.replace(
            config,
            epoch=self._core.epoch,
            domains=(*fresh, *nested),
            remotes=tuple(self._remote(name, remote) for remote in config.remotes),
            again=True,
            fresh_from=self._toolstack.fresh_from(name),
        )

    def _peers(self, guest: str) -> dict[str, int]:
        """Those whom `guest` may know at all, by their ids as they are now."""
        now = self._toolstack.peers(guest)
        return {peer: now.get(peer, domid) for peer, domid in self._node(guest).spec.config.peers.items()}

    def _remote(self, hypervisor: str, remote: RemoteConfig) -> RemoteConfig:
        """A guest elsewhere, as a later life of `hypervisor` knows it: the planned id is for the first life."""
        if not self._core.lived_before(remote.name):
            return remote
        domid = self._toolstack.meet(hypervisor, remote.name)
        return remote if domid is None else dataclasses.replace(remote, domid=domid)

    def ended(self, name: str, now: int) -> None:
        """The process of `name` is gone."""
        node = self._node(name)
        if node.spec.kind is NodeKind.GUEST:
            self._toolstack.exited(name, node.domid or 0)
        elif node.spec.kind is NodeKind.HYPERVISOR:
            self._toolstack.hypervisor_died(name, now)
            for domain in getattr(node.spec.config, "domains", ()):
                if getattr(domain, "remote", False) and domain.name in self._living:
                    self._tell(domain.name, ["hypervisor-gone"])  # no connection of its own says so

    def repeat(self, name: str) -> None:
        """Say again to a hypervisor what it has not answered, and to a guest which peers have not the planned id.

        Between its start, for which it is told them, and its joining, a guest hears of nothing.
        """
        self._toolstack.repeat(name)
        node = self._core.node(name)
        if node is not None and node.spec.kind is NodeKind.GUEST:
            planned = node.spec.config.peers
            for peer, domid in self._peers(name).items():
                if planned[peer] != domid:
                    self._tell(name, ["peer", peer, domid])

    def on_domain(self, origin: str, code: str, fields: list[Any], now: int) -> None:
        """A hypervisor says what became of a guest's domain."""
        match fields:
            case [str(name), int(domid)] if code == MET:
                for guest in self._toolstack.acting_as(name):
                    self._tell_of(guest, domid, self._toolstack.met(origin, guest, domid))
            case [str(guest), int(domid), *words] if self._runs(guest, origin):
                current = self._toolstack.domids[guest] == domid
                if code == "domain-dying" and current and guest in self._living:
                    self._core.detached(guest, now)
                elif code in (CREATED, REFUSED, FREED) and self._toolstack.answered(origin, code, guest, domid, now):
                    if code == CREATED:
                        self._begin_in(guest, domid)
                    else:
                        self._core.not_restarted(guest, " ".join(map(str, words)), now)
            case _:
                pass

    def _runs(self, guest: str, hypervisor: str) -> bool:
        """Whether `hypervisor` is one, and `guest` a guest of its."""
        node = self._core.node(guest)
        return node is not None and node.spec.kind is NodeKind.GUEST and node.spec.hypervisor == hypervisor

    def _begin_in(self, guest: str, domid: int) -> None:
        """The fresh domain is there: its peers learn of it before its guest starts."""
        self._tell_of(guest, domid, self._toolstack.neighbours(guest))
        self._node(guest).domid = domid
        self._start(guest)

    def _tell_of(self, guest: str, domid: int, peers: Iterable[str]) -> None:
        """Tell those of `peers` that may know `guest` by which id."""
        for peer in peers:
            if peer in self._living and guest in self._node(peer).spec.config.peers:
                self._tell(peer, ["peer", guest, domid])

    def _node(self, name: str) -> Node:
        node = self._core.node(name)
        assert node is not None
        return node
