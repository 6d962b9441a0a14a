"""Guests on another host than their hypervisor: real processes, the second host is this machine as well.

Rules: contracts 3, a remote guest attaches through the broker; the same program runs unchanged, and what happens to it
is what happens to a guest beside its hypervisor: issue "levels and hosts", 4.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import PEERS, ROOT, Rig, finish, wait_until
from tests.topologies.hosts.test_two_hosts import NAMED_WITHIN, host

pytestmark = pytest.mark.timeout(90)

LIBRARY = ROOT / "topologies" / "library" / "remote-guest.yaml"
STALLING = (ROOT / "tests" / "e2e" / "programs" / "stalling.py").read_text()
WITHIN = 45.0
SIZE = 1 << 20


def two(guests: str, *, argo: str = "mac-permissive: true, linger: 300ms", keys: str = "", more: str = "") -> str:
    """A topology with a hypervisor on this host; guests on the other one name it themselves."""
    hosts = "hosts:\n  near: {provider: local}\n  far: {provider: local}\n"
    hypervisors = f"hypervisors:\n  hv0: {{host: near, argo: {{{argo}}}{keys}}}\n"
    return f"name: two\n{hosts}{hypervisors}guests:\n{guests}{more}"


def guest(name: str, program: str, home: str = "", restart: str = "never", **arguments: Any) -> str:
    """One guest of `hv0`; `home`: the host that it names."""
    keys = f"on: hv0, memory: 16MiB, restart: {restart}, program: '{program}', with: {json.dumps(arguments)}"
    return f"  {name}: {{{keys}{f', host: {home}' if home else ''}}}\n"


def outcome_of(rig: Rig, file: str, *options: str) -> dict[str, Any]:
    """A run that ends well: its nodes by name."""
    done = finish(rig.start("run", file, "--format", "json", *options), WITHIN)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert all(check["passed"] for check in outcome["checks"])
    rig.wait_for_nothing()
    return {node["name"]: node for node in outcome["nodes"]}


def verdicts(nodes: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on time."""
    kept = ("sha256", "size", "count", "sessions", "verdict")
    guests = [node for node in nodes.values() if node["kind"] == "guest"]
    return {
        node["name"]: (node["exit"], {key: node["result"][key] for key in kept if key in node["result"]})
        for node in guests
    }


@pytest.fixture
def shipped(rig: Rig) -> str:
    """The lab that ships, with files of this test's that are worth sending."""
    text = LIBRARY.read_text()
    assert "file: remote-guest.yaml" in text
    (rig.topologies / "data.bin").write_bytes(random.Random(1).randbytes(SIZE))
    return rig.topology(text.replace("file: remote-guest.yaml", "file: data.bin"), "remote-guest.yaml")


def test_files_and_answers_go_both_ways(rig: Rig, shipped: str) -> None:
    """A file each way with its hash, a ping-pong on Arm; the same verdicts without processes and without hosts."""
    nodes = outcome_of(rig, shipped)
    away = {name for name, node in nodes.items() if node.get("host") == "lab2"}
    assert away == {"away-sender", "away-receiver", "away-pinger"}
    for sender, receiver in (("away-sender", "receiver"), ("sender", "away-receiver")):
        told = nodes[sender]["result"], nodes[receiver]["result"]
        assert told[0]["sha256"] == told[1]["sha256"]
        assert {result["verdict"] for result in told} == {"equal"}
        assert told[1]["size"] == SIZE
    assert nodes["away-pinger"]["result"]["count"] == 100
    inline = outcome_of(rig, shipped, "--runtime", "inline")
    assert verdicts(inline) == verdicts(nodes)
    text = (rig.topologies / shipped).read_text()
    hosts = "hosts:\n  lab1: {provider: local}\n  lab2: {provider: local}\n"
    assert hosts in text
    bare = text.replace(hosts, "").replace(", host: lab2", "").replace("host: lab1, ", "").replace("host: lab1", "")
    assert "lab1" not in bare.partition("\nname:")[2]
    assert verdicts(outcome_of(rig, rig.topology(bare, "bare.yaml"))) == verdicts(nodes)


def test_interrupts_are_accounted_for(rig: Rig, shipped: str) -> None:
    """docs/remote-guests.md: raised = delivered + coalesced (at both ends) + dropped + pending, as nearby."""
    nodes = outcome_of(rig, shipped)
    for name in ("away-sender", "away-receiver", "away-pinger"):
        hypervisor = "arm" if name == "away-pinger" else "x86"
        raised = nodes[hypervisor]["counters"]["arch"][name]
        taken = nodes[name]["counters"]["arch"]
        assert raised["interrupts_raised"] == sum(
            raised[f"interrupts_{what}"] for what in ("posted", "coalesced", "dropped")
        )
        assert taken["interrupts_delivered"] > 0
        # What is pending when a program ends is never taken: one of each kind at most.
        pending = raised["interrupts_posted"] - taken["interrupts_delivered"] - taken["interrupts_coalesced"]
        assert 0 <= pending <= 1, (name, raised, taken)


def pair(rig: Rig, *, restart: str = "never") -> str:
    """`app` here sends to `peer` on the other host, and writes down what comes of it; `left` and `right` stay here."""
    rig.program(PEERS)
    directory = str(rig.runtime)
    guests = guest("app", "mine:counts", to="peer", directory=directory) + guest("peer", "mine:takes", "far", restart)
    guests += guest("left", "mine:counts", to="right", directory=directory) + guest("right", "mine:takes")
    return guests


def peer(rig: Rig) -> dict[str, Any]:
    """How the guest on the other host stands, as the leader says; its host says less of it."""
    return next(node for state in rig.states() if "hosts" in state for node in state["nodes"] if node["name"] == "peer")


def start(rig: Rig, text: str) -> None:
    done = rig.run("up", "-d", rig.topology(text))
    assert done.returncode == 0, done.stderr


def test_it_is_killed(rig: Rig) -> None:
    """kill -9 kills its domain: peers see ECONNREFUSED, then ESRCH; neighbours notice nothing; `ps` says of what."""
    start(rig, two(pair(rig)))
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"] and rig.sent("app") > 5)
    row = next(line for line in rig.run("ps").stdout.splitlines() if " peer " in line)
    assert row.split()[2:5] == ["far", "guest", "ready"]
    pid = rig.node("peer")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: rig.seen("app")[-2:] == ["2 Connection refused", "2 No such process"], 5)
    wait_until(lambda: peer(rig)["state"] == "died", 5)
    before = rig.sent("left")
    wait_until(lambda: rig.sent("left") > before + 3, 5)
    assert rig.seen("left")[-1] == "4 ok"
    assert "killed by SIGKILL" in next(line for line in rig.run("ps").stdout.splitlines() if " peer " in line)
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_it_is_started_again(rig: Rig) -> None:
    """`restart: on-failure`: a fresh domain, of which its peers learn, and again through the broker."""
    start(rig, two(pair(rig, restart="on-failure")))
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    os.kill(rig.node("peer")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.seen("app")[-1:] == ["5 ok"], 15)
    assert (peer(rig)["restarts"], peer(rig)["domid"]) == (1, 5)
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_its_host_is_lost(rig: Rig) -> None:
    """The end of the other agent is the end of what runs there, and of its domains here."""
    start(rig, two(pair(rig)))
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    os.kill(host(rig)["pid"], signal.SIGKILL)
    wait_until(lambda: host(rig)["state"] == "lost", NAMED_WITHIN)
    wait_until(lambda: rig.seen("app")[-2:] == ["2 Connection refused", "2 No such process"], 5)
    before = rig.sent("left")
    wait_until(lambda: rig.sent("left") > before + 3, 5)
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_its_hypervisor_is_killed(rig: Rig) -> None:
    """It ends as all guests of that hypervisor do, soon, although no connection to it breaks."""
    start(rig, two(pair(rig)))
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    os.kill(rig.node("hv0")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("app")["state"] == "failed", 5)
    wait_until(lambda: peer(rig)["state"] == "failed", 2)  # as told: it is killed after three seconds only
    assert "hypervisor hv0 is gone" in rig.run("logs", "peer").stdout
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_its_hypervisor_is_started_again(rig: Rig) -> None:
    """With its guests, that on the other host among them, and all of them reach each other again."""
    start(rig, two(pair(rig), keys=", restart: on-failure"))
    wait_until(lambda: rig.seen("app")[-1:] == ["2 ok"])
    os.kill(rig.node("hv0")["pid"], signal.SIGKILL)
    wait_until(lambda: rig.node("hv0")["restarts"] == 1 and peer(rig)["restarts"] == 1, 20)
    wait_until(lambda: peer(rig)["state"] == "ready" and rig.seen("app")[-1:] == ["6 ok"], 20)
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


def test_the_broker_is_restarted_in_the_middle(rig: Rig) -> None:
    """Twice, during a transfer each way: no byte is lost, doubled or wrong, and both programs end well."""
    size = 6 << 20
    rig.program(STALLING, "stalling.py")
    keys: dict[str, Any] = {"bytes": size, "ring": 65536, "stall": 0.02}
    guests = guest("there", "stalling:receive", "far", **keys) + guest("here", "stalling:receive", **keys)
    guests += guest("to-there", "stalling:send", to="there", **keys)
    guests += guest("from-there", "stalling:send", "far", to="here", **keys)
    names = ("there", "here", "to-there", "from-there")
    checks = "".join(f"  - {{guest: {name}, expect: {{exit: 0}}, within: 40s}}\n" for name in names)
    process = rig.start("run", rig.topology(two(guests, more=f"checks:\n{checks}")), "--format", "json")
    wait_until(lambda: {rig.node(name)["state"] for name in names} == {"ready"})
    for life in (0, 1):
        wait_until(lambda: (rig.node("broker")["restarts"], rig.node("broker")["state"]) == (life, "ready"))  # noqa: B023
        assert {rig.node(name)["state"] for name in names} & {"ready"}  # it is in the middle
        os.kill(rig.node("broker")["pid"], signal.SIGKILL)
    done = finish(process, 60)
    assert done.returncode == 0, done.stderr
    nodes = {node["name"]: node for node in json.loads(done.stdout)["nodes"]}
    assert nodes["broker"]["restarts"] == 2
    for sender, receiver in (("to-there", "there"), ("from-there", "here")):
        told = nodes[sender]["result"], nodes[receiver]["result"]
        assert told[0]["sha256"] == told[1]["sha256"]
        assert told[1]["bytes"] == size
    rig.wait_for_nothing()


def test_on_every_level(rig: Rig) -> None:
    """Of a nested hypervisor on the first host, and of one beyond the fabric: a transfer between two remote guests."""
    rig.program(STALLING, "stalling.py")
    keys: dict[str, Any] = {"bytes": SIZE, "ring": 65536, "stall": 0.02}
    hypervisors = "  l1: {parent: hv0, personality: kvm, argo: {mac-permissive: true}}\n"
    hypervisors += "  hv2: {host: far, arch: aarch64, argo: {mac-permissive: true}}\n"
    hypervisors += "links:\n  - {between: [hv0, hv2]}\n"
    guests = guest("deep", "stalling:send", "far", to="wide", **keys).replace("on: hv0", "on: l1")
    guests += guest("wide", "stalling:receive", "near", **keys).replace("on: hv0", "on: hv2")
    checks = "".join(f"  - {{guest: {name}, expect: {{exit: 0}}, within: 40s}}\n" for name in ("deep", "wide"))
    text = two(guests, more=f"checks:\n{checks}").replace("guests:\n", f"{hypervisors}guests:\n", 1)
    nodes = outcome_of(rig, rig.topology(text))
    assert {nodes["deep"]["host"], nodes["hv2"]["host"]} == {"far"}
    assert nodes["deep"]["result"]["sha256"] == nodes["wide"]["result"]["sha256"]


def test_the_leaders_host_by_name_is_no_other(rig: Rig) -> None:
    """Its hypervisor names none: the guest attaches beside it, with its memory shared."""
    text = two(guest("a", "mine:forever", "near")).replace("{host: near, ", "{")
    start(rig, text)
    wait_until(lambda: rig.node("a")["state"] == "ready")
    pid = rig.node("a")["pid"]
    assert "argosy-a-ram" in Path(f"/proc/{pid}/maps").read_text()
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()


IMPAIRED = """
links:
  - {between: [x86, away-sender], impair: {delay: 3ms, jitter: 2ms, duplicate: 20%, reorder: 10%}}
  - {between: [away-receiver, x86], impair: {loss: 2%, rate: 20Mbit}}
  - {between: [arm, away-pinger], impair: {delay: 2ms, duplicate: 50%}}
"""


def test_files_cross_links_that_are_impaired(rig: Rig, shipped: str) -> None:
    """Late, lost, doubled, out of order: each byte arrives once; in one process there is no such link, nor a fault."""
    text = (rig.topologies / shipped).read_text() + IMPAIRED
    nodes = outcome_of(rig, rig.topology(text, shipped))
    for sender, receiver in (("away-sender", "receiver"), ("sender", "away-receiver")):
        assert nodes[sender]["result"]["sha256"] == nodes[receiver]["result"]["sha256"]
    assert nodes["away-pinger"]["result"]["count"] == 100
    assert verdicts(outcome_of(rig, shipped, "--runtime", "inline")) == verdicts(nodes)


def test_its_link_is_cut_and_mended(rig: Rig) -> None:
    """Live: its vCPU waits, and goes on where it was; a guest beside the hypervisor is not concerned."""
    rig.program(PEERS)
    given = {"to": "right", "directory": str(rig.runtime)}
    senders = guest("away", "mine:counts", "far", **given) + guest("beside", "mine:counts", **given)
    start(rig, two(senders + guest("right", "mine:takes")))

    def impair(*faults: str) -> None:
        done = rig.run("impair", "hv0", "away", *faults)
        assert done.returncode == 0, done.stderr

    def goes_on(name: str) -> None:
        before = rig.sent(name)
        wait_until(lambda: rig.sent(name) > before + 3, WITHIN)

    for name in ("away", "beside"):
        goes_on(name)
    impair("--partition")
    time.sleep(0.2)
    before = rig.sent("away")
    time.sleep(1)
    assert rig.sent("away") == before
    goes_on("beside")
    impair("--delay", "300ms")
    goes_on("away")
    before = rig.sent("away")
    time.sleep(1)
    assert rig.sent("away") <= before + 2, "each message takes a round trip"
    impair()
    goes_on("away")
    assert {line.partition(" ")[2] for line in rig.seen("away")} <= {"ok", "Connection refused"}
    assert rig.seen("away")[-1].endswith(" ok")
    for other in ("beside", "nobody"):
        assert rig.run("impair", "hv0", other, "--delay", "1ms").returncode == 2
    assert rig.run("down").returncode == 0
    rig.wait_for_nothing()
