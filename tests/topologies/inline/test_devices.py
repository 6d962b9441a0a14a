"""VirtIO devices in whole labs of one process: wherever front end and back end live, and whatever order chance makes.

The data are compared byte by byte; what the hypervisors do in between is theirs.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.doubles.mirror import MirrorMemory
from tests.topologies.inline.test_levels import MODE_WAYS
from tests.topologies.inline.test_runtime import Silent, node
from topologies.devices import Access
from topologies.exitcodes import ExitCode
from topologies.inline.runtime import InlineRuntime
from topologies.load import load
from topologies.plan import Places, plan
from topologies.runtime import Outcome

SIZE = 300 * 1024
VARIANTS = ("inline", "mirror")

LAB = """
name: devices
defaults: {{argo: {{mac-permissive: true}}, memory: 6MiB}}
hypervisors:
  hv0: {{doors: [hypercall, msr]}}
  own: {{parent: hv0}}
  forward: {{parent: hv0, personality: kvm, argo: {{mode: forward}}}}
  steal: {{parent: hv0, personality: xen, argo: {{mode: steal}}}}
  far: {{}}
guests:
  disk: {{on: {to}, program: builtin:blk-server, with: {{image: disk.img, copy: mine.img, sessions: 2}}}}
  reader: {{on: {at}, devices: [{{type: blk, variant: {variant}}}], program: builtin:blk-copy, with: {{chunk: 16KiB}}}}
  writer:
    on: {at}
    devices: [{{type: blk, variant: {variant}}}]
    program: builtin:blk-write
    with: {{offset: 200KiB, count: 60, size: 1KiB}}
destinations:
{rows}
checks:
  - {{guest: reader, expect: {{exit: 0}}, within: 60s}}
  - {{guest: writer, expect: {{exit: 0}}, within: 60s}}
  - {{guest: disk, expect: {{exit: 0}}, within: 60s}}
"""


def image() -> bytes:
    return random.Random(6).randbytes(SIZE)


def run(directory: Path, text: str, seed: int = 0, **options: Any) -> tuple[Outcome, list[str]]:
    (directory / "lab.yaml").write_text(text)
    (directory / "disk.img").write_bytes(image())
    places = Places(str(directory), str(directory / "run"), str(directory / "run"))
    runtime = InlineRuntime(seed, **options)
    made = plan(load(str(directory / "lab.yaml")), places, token=b"t" * 32, seed=seed)
    return runtime.run(made, Silent()), runtime.log


def lab(at: str, to: str, variant: str = "inline") -> str:
    """Reader and writer `at` a hypervisor, the disk `to` another one, or the same."""
    holders = [at] if at == "forward" else ["reader", "writer"]
    rows = "\n".join(f"  - {{from: {holder}, service: storage, to: disk}}" for holder in holders)
    return LAB.format(at=at, to=to, variant=variant, rows=rows)


def check(outcome: Outcome, directory: Path) -> None:
    """All is well, nothing was lost, and each sector that was read is old or new."""
    assert outcome.code == ExitCode.OK, (outcome.reasons, [(row.name, row.result) for row in outcome.nodes])
    before, now = image(), (directory / "run/nodes/disk/mine.img").read_bytes()
    written = slice(200 * 1024, 260 * 1024)
    assert (now[: written.start], now[written.stop :]) == (before[: written.start], before[written.stop :])
    assert now[written] != before[written]
    copy = (directory / "run/nodes/reader/disk.img").read_bytes()
    assert len(copy) == SIZE
    for sector in range(0, SIZE, 512):
        assert copy[sector : sector + 512] in (before[sector : sector + 512], now[sector : sector + 512])
    assert (directory / "disk.img").read_bytes() == before
    counted = node(outcome, "disk").result
    assert (counted["sessions"], counted["lost"], set(counted["requests"])) == (2, 0, {"OK"})


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_order_chance_makes(tmp_path: Path, seed: int, variant: str) -> None:
    """Two front ends of one disk, whose requests and the hypervisor's turns interleave at random."""
    outcome, _ = run(tmp_path, lab("hv0", "hv0", variant), seed)
    check(outcome, tmp_path)


@pytest.mark.parametrize("way", [*MODE_WAYS, ("hv0", "own"), ("own", "hv0"), ("hv0", "far"), ("own", "far")])
def test_wherever_they_live(tmp_path: Path, way: tuple[str, str]) -> None:
    """On one hypervisor, one inside the other, side by side; whoever serves their Argo."""
    outcome, _ = run(tmp_path, lab(*way, VARIANTS[sum(map(len, way)) % 2]), seed=1)
    check(outcome, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_memory_that_travels(tmp_path: Path, variant: str) -> None:
    """As on another host than the hypervisor: only rings and what a guest published are ever seen."""
    outcome, _ = run(tmp_path, lab("hv0", "hv0", variant), memory=MirrorMemory)
    check(outcome, tmp_path)


def test_up_and_up_again(tmp_path: Path) -> None:
    """A guest that names only its service: two hypervisors ask on its behalf."""
    text = lab("own", "hv0").replace("name: devices", "name: up").replace("on: own", "on: deep", 2)
    text = text.replace("  own: {parent: hv0}", "  own: {parent: hv0}\n  deep: {parent: own}")
    text = text.replace("to: disk}", "to: up}")
    leads = (("deep", "up"), ("own", "disk"))
    rows = "".join(f"\n  - {{from: {who}, service: storage, to: {to}}}" for who, to in leads)
    outcome, _ = run(tmp_path, text.replace("\nchecks:", f"{rows}\nchecks:"))
    check(outcome, tmp_path)


EVERY = """
name: every
defaults: {{argo: {{mac-permissive: true}}, memory: 6MiB, arch: {arch}}}
hypervisors: {{hv0: {{firmware: {firmware}}}}}
kinds: {{user: {{on: hv0}}}}
guests:
  noise: {{on: hv0, program: builtin:rng-server}}
  line: {{on: hv0, program: builtin:console-server}}
  switch: {{on: hv0, program: builtin:net-switch, with: {{sessions: 2}}}}
  sockets: {{on: hv0, program: builtin:vsock-server, with: {{sessions: 3, cids: {{called: 9}}}}}}
  disk: {{on: hv0, program: builtin:blk-server, with: {{blank: 1MiB, queues: 2}}}}
  a: {{kind: user, devices: [{{type: rng, {how}}}], program: builtin:rng-read}}
  b: {{kind: user, devices: [{{type: console, {how}}}], program: builtin:console-talk}}
  c: {{kind: user, devices: [{{type: net, {how}}}], program: builtin:net-ping, with: {{count: 20, size: 1400}}}}
  d: {{kind: user, devices: [{{type: net, transport: virtio-argo}}], program: builtin:net-echo}}
  e: {{kind: user, devices: [{{type: vsock, {how}}}], program: builtin:vsock-ping, with: {{size: 10KiB}}}}
  f: {{kind: user, devices: [{{type: vsock, {how}}}], program: builtin:vsock-ping, with: {{cid: 9, count: 20}}}}
  called: {{kind: user, devices: [{{type: vsock, {how}}}], program: builtin:vsock-echo}}
  g:
    kind: user
    devices: [{{type: rng, service: display, {how}}}, {{type: blk, queues: 2, {how}}}]
    program: builtin:blk-write
    with: {{count: 100}}
destinations:
  - {{from: a, service: rng, to: noise}}
  - {{from: b, service: console, to: line}}
  - {{from: c, service: net, to: switch}}
  - {{from: d, service: net, to: switch}}
  - {{from: e, service: vsock, to: sockets}}
  - {{from: f, service: vsock, to: sockets}}
  - {{from: called, service: vsock, to: sockets}}
  - {{from: g, service: storage, to: disk}}
  - {{from: g, service: display, to: noise, port: 0xA3000}}
"""


@pytest.mark.parametrize(("arch", "firmware"), [("x86_64", "acpi"), ("aarch64", "devicetree")])
@pytest.mark.parametrize("access", get_args(Access))
def test_every_device_over_virtio_mmio(tmp_path: Path, access: str, arch: str, firmware: str) -> None:
    """Registers, IOREQ and each way to reach memory carry all of them; net goes to a front end over Argo."""
    text = EVERY.format(how=f"transport: virtio-mmio, access: {access}", arch=arch, firmware=firmware)
    outcome, _ = run(tmp_path, text, seed=2)
    assert outcome.code == ExitCode.OK, (outcome.reasons, [(row.name, row.result) for row in outcome.nodes])
    for name in ("noise", "line", "switch", "sockets", "disk"):
        result = node(outcome, name).result
        assert result["round_trips"] > 20 and result["lost"] == result["trouble"] == 0
        assert (result["copied_by_back_end"] > 0) == (access in ("foreign", "foreign-kept", "grant-map"))
        assert (result["maps"] > 0) == (access not in ("dma", "dma-iommu"))
    assert [node(outcome, name).result["wrong"] for name in "bcefg"] == [0] * 5


def test_the_same_seed_gives_the_same_history(tmp_path: Path) -> None:
    """Back ends, caches and negotiations included, byte for byte."""
    logs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        outcome, log = run(tmp_path / name, lab("own", "hv0"), seed=9)
        check(outcome, tmp_path / name)
        logs.append([line.replace(str(tmp_path / name), "") for line in log])
    assert logs[0] == logs[1]
    assert any(json.loads(line)[2] == "turn" for line in logs[0])


WRONG = (
    ("blk-server", "image: disk.img, blank: 1MiB", "with.blank: goes without `image`"),
    ("blk-server", "blank: 1000", "with.blank: 1000 bytes are no whole sectors of 512"),
    ("blk-server", "blank: 1MiB, copy: a/b", "with.copy: 'a/b' is no plain file name; try 'b'"),
    ("blk-server", "image: disk.img, read-only: 'yes'", "with.read-only: 'yes' is neither true nor false"),
    ("blk-server", "image: disk.img, queues: 17", "with.queues: 17 is no whole number from 1 to 16"),
    ("blk-server", "image: disk.img, instance: 128", "storage has no instance 128: 0 to 127"),
    ("blk-server", "image: nowhere.img", "there is no disk: [Errno 2]"),
    ("vsock-server", "cids: [1]", "with.cids: write a map such as {GUEST: 5}"),
    ("vsock-server", "cids: {g: 2}", "with.cids: g: 2 is no context id of a guest: they start at 3"),
    ("vsock-server", "cids: {g: 5, h: 5}", "with.cids: each guest has a context id of its own"),
    ("net-switch", "tap: argosy0", "no TAP interface"),
    ("rng-server", "service: entropy", "'entropy' is no well-known service"),
    ("rng-server", "sessions: -1", "with.sessions: -1 is no whole number"),
)


@pytest.mark.parametrize(("program", "arguments", "words"), WRONG)
def test_arguments_that_cannot_be(tmp_path: Path, program: str, arguments: str, words: str) -> None:
    """The run fails, and says which guest and why."""
    guest = f"{{on: hv0, program: 'builtin:{program}', with: {{{arguments}}}}}"
    text = f"name: x\nhypervisors: {{hv0: }}\nguests: {{g: {guest}}}\n"
    outcome, _ = run(tmp_path, text)
    assert outcome.code == ExitCode.CHECK_FAILED
    told = str(node(outcome, "g").result) + " ".join(outcome.reasons)
    assert words in told


def test_without_mac_permissive(tmp_path: Path) -> None:
    """A back end that takes all who come needs it, and says so; with `from` it needs nothing."""
    text = """
name: x
hypervisors: {hv0: }
guests:
  app: {on: hv0, devices: [{type: rng}], program: builtin:rng-read, with: {within: 1s}}
  noise: {on: hv0, program: builtin:rng-server, with: {@}}
destinations: [{from: app, service: rng, to: noise}]
"""
    outcome, _ = run(tmp_path, text.replace("@", ""))
    assert outcome.code == ExitCode.CHECK_FAILED
    assert "cannot serve at port 0xa3000" in node(outcome, "noise").result["error"]
    assert "or give `from`" in (tmp_path / "run/nodes/noise/log").read_text()


def test_the_program_that_the_documentation_shows(tmp_path: Path) -> None:
    """docs/devices.md: a program of one's own opens its disk and reads from it."""
    page = (Path(__file__).parents[3] / "docs" / "devices.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    assert "guest.virtio" in code
    (tmp_path / "shown.py").write_text(f"{code}    guest.result(first=first.hex())\n")
    text = lab("hv0", "hv0").replace("sessions: 2", "sessions: 3")
    text = text.replace(
        "destinations:", "  mine: {on: hv0, devices: [{type: blk}], program: 'shown:main'}\ndestinations:"
    )
    text = text.replace("\nchecks:", "\n  - {from: mine, service: storage, to: disk}\nchecks:")
    outcome, _ = run(tmp_path, text)
    assert outcome.code == ExitCode.OK, outcome.reasons
    assert node(outcome, "mine").result["first"] == image()[:512].hex()


def test_a_read_only_disk(tmp_path: Path) -> None:
    """Writing is refused, reading is not, and the image stays as it is."""
    text = lab("hv0", "hv0").replace("copy: mine.img", "read-only: true")
    outcome, _ = run(tmp_path, text)
    assert outcome.code == ExitCode.CHECK_FAILED
    assert "a read-only device" in node(outcome, "writer").result["error"]
    assert (tmp_path / "disk.img").read_bytes() == image()


ROGUE = """
name: rogue
defaults: {argo: {mac-permissive: true}, memory: 6MiB}
hypervisors: {hv0: {}}
guests:
  app: {on: hv0, vcpus: 2, devices: [{type: rng, transport: virtio-mmio}], program: "rogue:@"}
  model: {on: hv0, program: "rogue:model"}
destinations: [{from: app, service: rng, to: model}]
checks: [{guest: app, expect: {exit: 4}, within: 50s}]
"""
PROGRAMS = Path(__file__).parents[2] / "e2e" / "programs"


@pytest.mark.parametrize("program", ["uses", "waits", "spins"])
@pytest.mark.parametrize("seed", range(4))
def test_a_guest_whose_domain_crashes(tmp_path: Path, seed: int, program: str) -> None:
    """Xen's domain_crash: the guest ends as one that lost its hypervisor, whatever it does just then."""
    (tmp_path / "rogue.py").write_text((PROGRAMS / "rogue.py").read_text())
    outcome, log = run(tmp_path, ROGUE.replace("@", program), seed)
    assert outcome.code == ExitCode.OK, outcome.reasons
    app = node(outcome, "app")
    assert app.exit == ExitCode.INFRASTRUCTURE and app.detail.startswith("its domain crashed: vCPU 0: "), app
    assert "-> 9" in app.detail
    assert "crashed its domain" in (tmp_path / "run/nodes/app/log").read_text()
    ended = next(json.loads(line)[0] for line in log if json.loads(line)[1:3] == ["app", "ended"])
    assert ended < 10, "it was the crash that ended it, not the end of the lab"
