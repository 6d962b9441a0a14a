"""What the broker does with each control record, one handler per row of the vocabulary that nodes may say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker import codec
from broker.fields import Record
from broker.frames import Lane
from broker.impair import Impairment
from broker.lifecycle import Node, Stimulus
from broker.mirrored import MIRROR
from broker.records import Incoming
from broker.refusals import Refusal
from broker.switch import BROKER

if TYPE_CHECKING:
    from broker.router import RouterCore

LABELS: Final = "labels"
"""First word of what a `relabel` holds; the others are pairs of a guest's name and its label."""

Handler = Callable[["RouterCore", Node, Lane, Incoming], None]


def _on_late_hello(core: RouterCore, node: Node, lane: Lane, _item: Incoming) -> None:
    core.report(node, Refusal.NOT_ALLOWED, f"hello as a numbered record on lane {lane.name}")


def _on_ready(core: RouterCore, node: Node, _lane: Lane, _item: Incoming) -> None:
    core.move(node, Stimulus.READY, f"pid {node.pid}")


def _on_exit(core: RouterCore, node: Node, _lane: Lane, item: Incoming) -> None:
    _, code, reason = item.record
    core.move(node, Stimulus.EXIT, f"exit {code}: {reason}")
    core.flush_node(node)  # acknowledges, for the node waits for that before it goes


def _on_heartbeat(core: RouterCore, _node: Node, _lane: Lane, _item: Incoming) -> None:
    core.counters["heartbeats"] += 1


def _on_subscribe(core: RouterCore, node: Node, _lane: Lane, _item: Incoming) -> None:
    node.subscribed = True
    core.snapshot(node)
    while core.unheard:
        core.say(node, core.unheard.popleft())


def _on_tell(core: RouterCore, node: Node, _lane: Lane, item: Incoming) -> None:
    _, name, record = item.record
    if name == BROKER:
        _told_broker(core, node, record)
        return
    target = core.nodes.get(name)
    if target is None or not target.live:
        core.counters["nobody"] += 1
        core.say(node, ["nobody", name, record])
    elif record[0] == MIRROR and core.mirrored.take(node, target, item.payload, core.switch.now_ns):
        pass  # its link is impaired: it arrives later, or is lost
    elif core.tell(target, node.name, record, item.payload):
        core.counters["told"] += 1
    else:
        core.counters["busy"] += 1
        core.say(node, ["busy", name, record])


def _told_broker(core: RouterCore, node: Node, record: Record) -> None:
    if record[0] == "counters?":
        core.tell(node, BROKER, ["counters", json.dumps(core.counters, sort_keys=True)])
    elif record[0] == "shutdown" and node.kind == "agent":
        core.shutdown()
    else:
        core.report(node, Refusal.NO_ROUTE, f"the broker does not answer {codec.show(record[0])}")


def _on_event(core: RouterCore, node: Node, lane: Lane, item: Incoming) -> None:
    core.counters["events"] += 1
    record = ["event", node.name, *item.record[1:]]
    if not core.to_subscribers(lane, record) and lane is Lane.CONTROL:
        core.counters["unheard"] += 1
        core.unheard.append(record)


def _on_attach(core: RouterCore, node: Node, _lane: Lane, item: Incoming) -> None:
    _, name = item.record
    target = core.nodes.get(name)
    if target is None or not target.live or target.kind != "hypervisor":
        core.say(node, ["nobody", name, item.record])
    elif not core.tell(target, BROKER, ["grant", node.name, core.mint()]):
        core.say(node, ["busy", name, item.record])


def _on_gone(core: RouterCore, _node: Node, _lane: Lane, item: Incoming) -> None:
    _, name, code, reason, pid = item.record
    target = core.nodes.get(name)
    if target is not None and pid in (0, target.pid):  # else it came late, and another life has joined since
        core.move(target, Stimulus.GONE, f"exit {code}: {reason}", announce=True)


def _on_shutdown(core: RouterCore, _node: Node, _lane: Lane, _item: Incoming) -> None:
    core.shutdown()


def _on_impair(core: RouterCore, node: Node, _lane: Lane, item: Incoming) -> None:
    _, a, b, values = item.record
    unknown = [name for name in (a, b) if not core.switch.linkable(name)]
    if unknown or a == b:
        core.report(node, Refusal.NOT_ALLOWED, f"no link between {a!r} and {b!r}")
        return
    try:
        impairment = Impairment.of(values)
    except ValueError as error:
        core.report(node, Refusal.MALFORMED_RECORD, f"impair {a} {b}: {error}")
        return
    core.impair(a, b, impairment)
    core.say(node, ["impaired", a, b, list(impairment)])


def _on_relabel(core: RouterCore, node: Node, _lane: Lane, item: Incoming) -> None:
    _, number, given = item.record
    if given[0] != LABELS or len(given) % 2 == 0 or not all(isinstance(word, str) for word in given):
        core.report(node, Refusal.MALFORMED_RECORD, f"relabel: {LABELS!r} and pairs of a guest and its label")
        return
    core.switch.judge.relabel(number, dict(zip(given[1::2], given[2::2], strict=True)))
    core.say(node, ["relabelled", number])


HANDLERS: Final[dict[str, Handler]] = {
    "hello": _on_late_hello,
    "ready": _on_ready,
    "exit": _on_exit,
    "heartbeat": _on_heartbeat,
    "subscribe": _on_subscribe,
    "tell": _on_tell,
    "event": _on_event,
    "attach": _on_attach,
    "gone": _on_gone,
    "shutdown": _on_shutdown,
    "impair": _on_impair,
    "relabel": _on_relabel,
}
