"""The fabric beyond one host, on real sockets: CURVE, the allow-list, and a host with a valid key that lies.

Every wait has a deadline; ports are the system's choice.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from broker import frames, keys
from broker.binding import Binding
from broker.client import JoinRefused, ZmqLink
from broker.config import BrokerConfig, ConfigError
from broker.envelope import Envelope, EnvelopeKind, result_of
from broker.frames import FrameKind, Lane
from broker.impair import Impairment
from broker.keys import ClientCurve, KeyPair, ServerCurve, generate
from broker.member import MemberState
from broker.refusals import Refusal
from broker.server import EndpointError, Server
from tests.broker.sockets import WAIT_S, Net, eventually, listen, net_in, pump_until
from tests.broker.support import TOKEN, envelope_of, handshake, hello_record

pytestmark = pytest.mark.timeout(40)

BINDING = Binding(
    hosts=(("hv0", "lab1"), ("hv1", "lab2"), ("app", "lab2"), ("agent", "lab1")),
    hypervisors=(("hv0",), ("hv1",), ("hv1", "l1")),
    guests=((("hv0", "app"), "client_t"), (("hv1", "store"), "server_t"), (("hv1", "l1", "deep"), "")),
)


class CurveNet(Net):
    """A broker on an ipc endpoint and a tcp one, its keys, and links from each host."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.pair = generate()
        self.hosts = {name: generate() for name in ("lab1", "lab2")}
        self.tcp = "tcp://127.0.0.1:*"

    def secured(self, epoch: int = 1, **changes: Any) -> Server:
        """A server that serves in a thread, with keys and the plan's binding."""
        curve = ServerCurve(self.pair, tuple((pair.public, host) for host, pair in self.hosts.items()))
        options: dict[str, Any] = {"curve": curve, "host": "lab1", "binding": BINDING, **changes}
        server = self.serve(Server(self.endpoint, token=TOKEN, epoch=epoch, endpoints=(self.tcp,), **options))
        self.tcp = server.endpoints[1]
        return server

    def far(self, name: str = "hv1", kind: str = "hypervisor", host: str = "lab2", **changes: Any) -> ZmqLink:
        """A link over tcp from `host` that has not joined."""
        curve = ClientCurve(self.pair.public, self.hosts[host])
        return self.link(name, kind, **{"endpoint": self.tcp, "curve": curve, **changes})


@pytest.fixture
def net(short_tmp_path: Path) -> Iterator[CurveNet]:
    made = CurveNet(short_tmp_path)
    with net_in(short_tmp_path, made):
        yield made


def refusal(link: ZmqLink, within_s: float = WAIT_S) -> tuple[str, str]:
    with pytest.raises(JoinRefused) as caught:
        link.wait_joined(within_s)
    return caught.value.code, caught.value.message


def test_two_hosts_exchange_envelopes(net: CurveNet) -> None:
    """One hypervisor over ipc, one over CURVE: request and result, the payload whole."""
    net.secured()
    near, far = net.joined("hv0", "hypervisor"), net.far()
    far.wait_joined(WAIT_S)
    got: list[tuple[str, Envelope, bytes]] = []

    def keep(name: str) -> Any:
        def on_record(lane: Lane, record: Any, payload: Any) -> None:
            if lane is Lane.REQUEST:
                got.append((name, record, bytes(payload)))

        return on_record

    near.on_record, far.on_record = keep("near"), keep("far")
    data = random.Random(5).randbytes(100_000)
    near.send(Lane.REQUEST, envelope_of(label="client_t"), data)
    pump_until(lambda: len(got) == 1, near, far)
    name, request, payload = got.pop()
    assert (name, payload == data) == ("far", True)
    far.send(Lane.REQUEST, result_of(request, len(data)))
    pump_until(lambda: len(got) == 1, near, far)
    assert (got[0][0], got[0][1].kind, got[0][1].ret) == ("near", EnvelopeKind.RESULT, len(data))


# ---- handshakes that fail --------------------------------------------------------------------------------


def handshakes(link: ZmqLink) -> int:
    """Handshakes of a link that gave up, within a time in which it would have tried several times."""
    assert link._monitor is not None
    events = link._monitor._events
    deadline = time.monotonic() + 0.4
    tries = 0
    while (left := deadline - time.monotonic()) > 0:
        if events.poll(int(left * 1000) + 1):
            events.recv_multipart()
            tries += 1
    return tries


def test_a_wrong_server_key(net: CurveNet) -> None:
    """The client's error names the endpoint; it comes once, and soon; nothing tries again."""
    server = net.secured()
    link = net.far(curve=ClientCurve(generate().public, net.hosts["lab2"]))
    refused: list[tuple[str, str]] = []
    link.member.on_refused = lambda code, message: refused.append((code, message))
    code, message = refusal(link)
    assert code == Refusal.HANDSHAKE_FAILED
    assert net.tcp in message
    assert "key is not the one expected" in message
    for _ in range(5):
        link.pump()
    assert refused == [(code, message)]
    assert handshakes(link) == 0
    assert "hv1" not in server.core.nodes


def test_a_client_key_that_is_not_listed(net: CurveNet) -> None:
    """One clear error at the client; the broker counts it, and who may still may."""
    server = net.secured()
    link = net.far(curve=ClientCurve(net.pair.public, generate()))
    code, message = refusal(link)
    assert (code, "not on the broker's list" in message) == (Refusal.HANDSHAKE_FAILED, True)
    assert handshakes(link) == 0
    assert server.core.counters[f"refused.{Refusal.HANDSHAKE_FAILED}"] == 1
    net.far().wait_joined(WAIT_S)


def test_a_client_without_keys(net: CurveNet) -> None:
    """It speaks another mechanism: refused at once, or after the third connection that ends."""
    net.secured()
    code, message = refusal(net.far(curve=None))
    assert code == Refusal.HANDSHAKE_FAILED
    assert "security mechanism" in message or "it wants one" in message


def test_a_link_that_was_up_gives_up_when_the_broker_changed_its_key(net: CurveNet) -> None:
    """Joined before, then another broker with other keys at the same place: the same clear error."""
    first = net.secured()
    link = net.far()
    link.wait_joined(WAIT_S)
    net.stop(first)
    net.pair = generate()
    net.secured(epoch=2)
    pump_until(lambda: link.member.state is MemberState.REFUSED, link)
    assert link.member.refusal is not None
    assert link.member.refusal[0] == Refusal.HANDSHAKE_FAILED


def test_a_restarted_broker_with_the_same_keys(net: CurveNet) -> None:
    """Connections that are refused meanwhile are no failed handshakes."""
    first = net.secured()
    link = net.far()
    link.wait_joined(WAIT_S)
    net.stop(first)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        link.pump()
        time.sleep(0.01)
    net.secured(epoch=2)
    link.heartbeat()  # a member learns of a new broker when it says something
    pump_until(lambda: link.joined and link.member.epoch == 2, link)


# ---- who may be whom -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "host", "words"),
    [("hv0", "lab2", "'hv0' runs on lab1; this connection is from lab2"),
     ("hv9", "lab2", "'hv9' is not in the plan"),
     ("hv1", "", "'hv1' runs on lab2; this connection is from lab1")],
)  # fmt: skip
def test_a_name_of_another_host(net: CurveNet, name: str, host: str, words: str) -> None:
    """A valid key does not make a host another one; a local connection is of the broker's host."""
    net.secured()
    link = net.far(name, host=host) if host else net.link(name, "hypervisor")
    code, message = refusal(link)
    assert (code, words in message) == (Refusal.WRONG_HOST, True), message


FORGERIES: list[tuple[Refusal, dict[str, Any]]] = [
    (Refusal.FORGED_SOURCE, {"path": "hv0/app", "label": "client_t"}),
    (Refusal.FORGED_SOURCE, {"path": "hv1/nobody"}),
    (Refusal.FORGED_LABEL, {"path": "hv1/store", "label": "client_t"}),
    (Refusal.FORGED_EPOCH, {"path": "hv1/store", "label": "server_t", "origin_epoch": 2}),
    (Refusal.FORGED_DEATH, {"path": "hv0/app", "label": "client_t", "kind": EnvelopeKind.ENDPOINT_DIED, "to": "*"}),
]


@pytest.mark.parametrize(("code", "forged"), FORGERIES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_host_with_a_valid_key_that_lies(net: CurveNet, code: Refusal, forged: dict[str, Any]) -> None:
    """Source, label, epoch, a domain's death: dropped, counted, reported, and the session goes on."""
    server = net.secured()
    near, agent, far = net.joined("hv0", "hypervisor"), net.joined("agent", "agent"), net.far()
    agent.send(Lane.CONTROL, ["subscribe"])
    far.wait_joined(WAIT_S)
    seen, reported, told = listen(near), listen(agent), listen(far)
    true = envelope_of("hv1/store", "hv0/app", 1, label="server_t", origin_epoch=3)
    far.send(Lane.REQUEST, true)
    pump_until(lambda: any(isinstance(record, Envelope) for record in seen), near, agent, far)
    seen.clear()
    far.send(Lane.REQUEST, envelope_of(**{"to": "hv0/app", "seq": 2, "origin_epoch": 3, **forged}))
    pump_until(
        lambda: any(record[:4] == ["event", "broker", "refused", code] for record in reported)
        and ["refused", code] in [list(record[:2]) for record in told],
        near, agent, far,
    )  # fmt: skip
    far.send(Lane.REQUEST, true._replace(origin_seq=3))
    pump_until(lambda: bool(seen), near, agent, far)
    assert [record.origin_seq for record in seen if isinstance(record, Envelope)] == [3]
    assert server.core.counters[f"refused.{code.value}"] == 1
    assert far.joined


def raw_dealer(net: CurveNet) -> zmq.Socket[bytes]:
    dealer = net.dealer(connect=False)
    dealer.setsockopt(zmq.CURVE_SERVERKEY, net.pair.public)
    dealer.setsockopt(zmq.CURVE_PUBLICKEY, net.hosts["lab2"].public)
    dealer.setsockopt(zmq.CURVE_SECRETKEY, net.hosts["lab2"].secret)
    dealer.connect(net.tcp)
    return dealer


def say(dealer: zmq.Socket[bytes], parts: list[bytes]) -> list[Any]:
    """Send a raw frame; the first refusal or welcome that comes back."""
    dealer.send_multipart(parts)
    deadline = time.monotonic() + WAIT_S
    while dealer.poll(max(0, int((deadline - time.monotonic()) * 1000))):
        for record in frames.parse_frame(dealer.recv_multipart()).records:
            if record[0] in ("welcome", "refused"):
                return record
    raise AssertionError("no answer in time")


def test_replayed_and_stale_frames(net: CurveNet) -> None:
    """Over a secured connection too: the same frame twice is REPLAYED and goes nowhere, an older epoch is STALE."""
    net.secured(epoch=5)
    near = net.joined("hv0", "hypervisor")
    seen = listen(near)
    dealer = raw_dealer(net)
    assert say(dealer, handshake(hello_record("hypervisor", "hv1"))) == ["welcome", 5, "hv1"]
    record = [*envelope_of("hv1/store", "hv0/app", 1, label="server_t")]
    parts = frames.pack_frame(FrameKind.RECORDS, Lane.REQUEST, 5, 0, 0, [record])
    dealer.send_multipart(parts)
    assert say(dealer, parts)[:2] == ["refused", Refusal.REPLAYED]
    pump_until(lambda: any(isinstance(record, Envelope) for record in seen), near)
    assert sum(isinstance(record, Envelope) for record in seen) == 1
    stale = frames.pack_frame(FrameKind.RECORDS, Lane.REQUEST, 4, 1, 0, [record])
    assert say(dealer, stale)[:2] == ["refused", Refusal.STALE_EPOCH]
    for _ in range(20):
        near.pump()
    assert sum(isinstance(record, Envelope) for record in seen) == 1


# ---- configuration ---------------------------------------------------------------------------------------


def config(**changes: Any) -> BrokerConfig:
    fields: dict[str, Any] = {"lab": "l", "endpoint": "ipc:///x", "token": b"t", "epoch": 1, "node_dir": "."}
    return BrokerConfig(**{**fields, **changes})


def test_tcp_without_keys_must_be_asked_for() -> None:
    """Refused with the endpoint's name, unless `insecure` was typed; secrets are not in what is printed."""
    for changes in ({"endpoint": "tcp://127.0.0.1:1"}, {"endpoints": ("tcp://10.0.0.1:5",)}):
        with pytest.raises(ConfigError, match="tcp://1"):
            config(**changes)
        config(insecure=True, **changes)
        config(curve=ServerCurve(generate(), ()), **changes)
    for strange in ("inproc://x", "udp://1.2.3.4:5", ""):
        with pytest.raises(ConfigError, match="neither"):
            config(endpoint=strange)
    shown = repr(config(token=b"lab-secret", curve=ServerCurve(KeyPair(b"public", b"hidden"), ())))
    assert "secret" not in shown
    assert "hidden" not in shown


def test_insecure_tcp(net: CurveNet) -> None:
    """Without keys nothing tells the hosts apart, so names are not judged by host."""
    net.secured(curve=None)
    net.far("hv0", curve=None).wait_joined(WAIT_S)
    assert refusal(net.link("hv1", "hypervisor"))[0] == Refusal.WRONG_HOST


def test_a_server_from_its_configuration(net: CurveNet, tmp_path: Path) -> None:
    """Keys from files, impairments from the start."""
    directory = tmp_path / "keys"
    keys.make_keys(directory, ["lab1", "lab2"])
    server = net.serve(
        Server.of(
            config(
                endpoint=net.endpoint, token=TOKEN, endpoints=("tcp://127.0.0.1:*",), binding=BINDING, host="lab1",
                curve=keys.server_curve(directory, ["lab1", "lab2"]),
                impair=(("lab1", "lab2", Impairment(partition=True)),),
            )
        )
    )  # fmt: skip
    near = net.joined("hv0", "hypervisor")
    news = listen(near)
    far = net.link("hv1", "hypervisor", endpoint=server.endpoints[1], curve=keys.client_curve(directory, "lab2"))
    far.wait_joined(WAIT_S)
    pump_until(lambda: ["peer", "hv1", "down", 1, os.getpid()] in news, near, far)


def test_an_endpoint_that_cannot_be_bound(net: CurveNet) -> None:
    """Of several endpoints one is taken: the error names it, and nothing is left listening."""
    server = net.secured()
    with pytest.raises(EndpointError) as caught:
        Server(f"{net.endpoint}2", token=TOKEN, epoch=1, endpoints=(server.endpoints[1],))
    assert caught.value.endpoint == server.endpoints[1]
    assert not Path(f"{net.path}2").exists()


def test_a_host_that_hangs_in_its_handshake_stops_nobody(net: CurveNet) -> None:
    """Connections that say nothing, or junk, cost the others nothing."""
    net.secured()
    port = int(net.tcp.rpartition(":")[2])
    strangers = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(20)]
    try:
        for stranger in strangers[::2]:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
        link = net.far()
        link.wait_joined(WAIT_S)
        assert eventually(lambda: link.joined)
    finally:
        for stranger in strangers:
            stranger.close()
