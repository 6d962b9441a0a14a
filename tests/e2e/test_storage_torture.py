"""A disk in running labs while somebody is killed again and again: what was flushed is there, the rest is old or new.

A front end does everything that may be done to a disk and keeps a journal.  Whoever is killed, and whenever, a model
(tests/doubles/disk_model.py) that is told the journal must allow each read, and the image that a dead back end left.
Source: VIRTIO 1.4, 5.2.6.2.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.disk_model import DiskModel, Wrong
from tests.e2e.programs import torture
from tests.e2e.rig import Rig, finish, wait_until

pytestmark = pytest.mark.timeout(240)

SECTOR = torture.SECTOR
SECTORS = 512
SPAN = 192
"""What the front end uses of them: few, so that sectors are written often.  The others stay zero."""
WITHIN = 90.0
"""Seconds that a loaded machine may take for what the processes do in a moment."""
BACK_END_DIES = ("disk", "hv0")

LAB = """
name: storage
hypervisors: {{hv0: {{restart: on-failure, argo: {{mac-permissive: true}}}}}}
guests:
  disk:
    {{on: hv0, memory: 16MiB, restart: on-failure, program: "{server}", with: {{blank: 256KiB, queues: 2}}}}
  front:
    on: hv0
    memory: 16MiB
    restart: on-failure
    devices: [{{type: blk, variant: {variant}, queues: 2}}]
    program: torture:main
    with: {{journal: "{directory}/journal", stop: "{directory}/stop", span: {span}, depth: {depth}, within: 60s}}
destinations:
  - {{from: front, service: storage, to: disk}}
checks:
  - {{guest: front, expect: {{exit: 0}}, within: 1200s}}
  - {{guest: disk, expect: {{exit: 0}}, within: 1200s}}
"""


class Replay:
    """The model after all that a journal says.  `kills`: when a back end was about to be killed."""

    def __init__(self, journal: str, kills: Sequence[float]) -> None:
        self.known = DiskModel(SECTORS, 0)
        self.counts: Counter[str] = Counter()
        self.complaints: list[Wrong] = []
        self.last: dict[int, int] = {}  # by sector: what was read since the last write was submitted
        self._requests: dict[int, tuple[int, int]] = {}  # by their number in the journal: that of the model, the sector
        lines = journal.split("\n")
        began, begins = 0.0, 0.0
        for line in lines[:-1]:  # behind the last newline there is nothing, or a line whose writer was killed
            try:
                when, what, *words = json.loads(line)
            except ValueError:
                self.counts["torn"] += 1
                continue
            self.counts[what] += 1
            if what == "start":
                begins = when
            elif what == "started":
                # The device that was started before may have died at any time since that start was begun.
                self.known.reset(lost=any(began <= kill <= when for kill in kills))
                self._requests.clear()
                began = begins
            else:
                self._request(what, words)

    def _request(self, what: str, words: list[Any]) -> None:
        known = self.known
        if what in ("write", "discard"):
            number, sector, count, value = words
            begins = known.write_begins if what == "write" else known.discard_begins
            self._requests[number] = begins(sector, [value] * count), sector
            for at in range(sector, sector + count):
                self.last.pop(at, None)
        elif what == "flush":
            self._requests[words[0]] = known.flush_begins(), 0
        elif what == "read":
            number, sector, count = words
            self._requests[number] = known.read_begins(sector, count), sector
        elif what in ("written", "flushed", "got") and words[0] in self._requests:
            # Otherwise a reset overtook the answer on its way to the worker that waits for it.
            number, sector = self._requests.pop(words[0])
            if what == "written":
                known.write_ends(number)
            elif what == "flushed":
                known.flush_ends(number)
            else:
                self.complaints += known.read_ends(number, words[1])
                self.last.update(enumerate(words[1], sector))

    def image(self, data: bytes, where: str) -> list[Wrong]:
        """What is wrong with an image."""
        assert len(data) == SECTORS * SECTOR
        return self.known.wrong(sectors(data), where)


def sectors(data: bytes) -> list[int]:
    """The writes whose contents the sectors have; -1 for what nobody wrote."""
    return [torture.number_of(data[at : at + SECTOR], at // SECTOR) for at in range(0, len(data), SECTOR)]


class Lab:
    """The lab of one test, its journal, and what was found wrong up to now."""

    def __init__(self, rig: Rig, seed: int, *, variant: str, server: str, depth: int = 4) -> None:
        shutil.copy(torture.__file__, rig.topologies / "torture.py")
        self.rig = rig
        self.chance = random.Random(seed)
        self.kills: list[float] = []
        self.killed: Counter[str] = Counter()
        self.complaints: list[Wrong] = []
        self.unsure: list[int] = []  # at each check of an image: the sectors that may hold more than one value
        self._journal = rig.runtime / "journal"
        self._image = rig.base / "storage" / "nodes" / "disk" / "disk.img"
        text = LAB.format(variant=variant, server=server, depth=depth, span=SPAN, directory=rig.runtime)
        self._command: subprocess.Popen[str] = rig.start(
            "run", rig.topology(text), "--seed", str(seed), "--format", "json"
        )
        self.progress()

    def progress(self, least: int = 20, most: int = 400) -> None:
        """Until the front end has got so many answers more, and everybody is up."""
        wanted = self._answers() + self.chance.randint(least, most)
        wait_until(lambda: self._command.poll() is not None or self._answers() >= wanted, WITHIN)
        wait_until(lambda: self._command.poll() is not None or self._all_up(), WITHIN)
        assert self._command.poll() is None, self._last_words(finish(self._command))
        time.sleep(self.chance.random() * 0.02)

    def kill(self, victim: str) -> None:
        """SIGKILL.  Of a back end that is dead the image is checked, before it is started again."""
        agent, nodes = self._agent(), self.rig.nodes()
        self.killed[victim] += 1
        ends = {"hv0": ("hv0", "disk", "front"), "disk": ("disk",)}.get(victim, ())
        os.kill(agent, signal.SIGSTOP)
        try:
            if victim in BACK_END_DIES:
                self.kills.append(time.monotonic())
            os.kill(nodes[victim]["pid"], signal.SIGKILL)
            wait_until(lambda: all(dead(nodes[name]["pid"]) for name in ends), WITHIN)
            if victim in BACK_END_DIES:
                self._check(f"the image when {victim} was killed")
        finally:
            os.kill(agent, signal.SIGCONT)

    def end_well(self) -> Replay:
        """Have the front end stop, flush and read everything: the image is what it read."""
        (self.rig.runtime / "stop").touch()
        done = finish(self._command, WITHIN)
        assert done.returncode == 0, self._last_words(done)
        replay = self._check("the image at the end")
        assert replay.counts["done"] == 1
        found = sectors(self._image.read_bytes())
        self.complaints += [
            Wrong("the image beside the last read", at, found[at], (replay.last[at],))
            for at in range(SPAN)
            if found[at] != replay.last[at]
        ]
        for node in json.loads(done.stdout)["nodes"]:
            # Nobody died but those who were killed, and those who lived on them.
            lived_on = self.killed["hv0"] if node["kind"] == "guest" else 0
            assert node["restarts"] == self.killed[node["name"]] + lived_on, node
        self.rig.wait_for_nothing(WITHIN)
        return replay

    def end_badly(self) -> Replay:
        """SIGKILL for all at once."""
        self.kills.append(time.monotonic())
        for pid in (self._agent(), self._command.pid):
            os.kill(pid, signal.SIGKILL)
        self._command.communicate()
        wait_until(lambda: not self.rig.processes(), WITHIN)
        return self._check("the image when all were killed")

    def _check(self, where: str) -> Replay:
        image = self._image.read_bytes()
        replay = Replay(self._journal.read_text(), self.kills)
        self.complaints = replay.complaints + [wrong for wrong in self.complaints if wrong.where != "a read"]
        self.complaints += replay.image(image, where)
        self.unsure.append(replay.known.unsure())
        return replay

    def _last_words(self, done: subprocess.CompletedProcess[str]) -> str:
        logs = (f"{path.parent.name}: {path.read_text()[-2000:]}" for path in self.rig.base.glob("*/nodes/*/log"))
        return "\n".join((done.stderr, done.stdout, *logs))

    def _agent(self) -> int:
        found: int = self.rig.states()[0]["agent"]["pid"]
        return found

    def _answers(self) -> int:
        try:
            text = self._journal.read_text()
        except OSError:
            return 0
        return sum(text.count(f'"{what}"') for what in ("written", "flushed", "got"))

    def _all_up(self) -> bool:
        nodes = self.rig.nodes()
        return len(nodes) == 4 and {node["state"] for node in nodes.values()} == {"ready"}


def dead(pid: int) -> bool:
    """Whether a process has ended; somebody may yet have to be told so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def torment(lab: Lab, victims: Sequence[str], *, well: bool) -> Replay:
    """Kill them one after the other; the end."""
    for victim in victims:
        lab.kill(victim)
        lab.progress()
    return lab.end_well() if well else lab.end_badly()


def check(lab: Lab, replay: Replay, rounds: int) -> None:
    """Nothing was wrong, and there was something to see."""
    print(f"killed: {dict(lab.killed)}; seen: {dict(replay.counts)}; unsure: {lab.unsure}")
    assert lab.complaints == [], "\n".join(map(str, lab.complaints))
    assert replay.counts["life"] == 1 + lab.killed["front"] + lab.killed["hv0"]
    assert replay.counts["written"] > 10 * rounds and replay.counts["got"] > 10 * rounds
    assert replay.counts["flushed"] > rounds
    assert all(unsure < SPAN for unsure in lab.unsure), "some sectors are known"
    if lab.killed["disk"]:
        assert replay.counts["failed"] >= lab.killed["disk"], "its front end noticed each death"


SERVER, SMALL = "builtin:blk-server", "torture:small_cache"
CASES = (
    ("disk", "inline", SERVER, True),
    ("disk", "mirror", SMALL, False),
    ("front", "mirror", SERVER, True),
    ("hv0", "inline", SMALL, True),
    ("broker", "inline", SERVER, True),
    ("everybody", "mirror", SERVER, False),
)
EVERYBODY = ("disk", "front", "hv0", "broker")


def victims_of(victim: str, seed: int, rounds: int) -> list[str]:
    """Who is killed in which order."""
    if victim != "everybody":
        return [victim] * rounds
    chance, order = random.Random(seed), list[str]()
    while len(order) < rounds:
        order += chance.sample(EVERYBODY, len(EVERYBODY))
    return order[:rounds]


@pytest.mark.parametrize(("victim", "variant", "server", "well"), CASES)
def test_a_disk_survives(rig: Rig, victim: str, variant: str, server: str, well: bool) -> None:
    """Two deaths of each, four of everybody, and an end: in peace, or SIGKILL for all."""
    rounds = 4 if victim == "everybody" else 2
    lab = Lab(rig, 1, variant=variant, server=server)
    replay = torment(lab, victims_of(victim, 1, rounds), well=well)
    check(lab, replay, rounds)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [3])
@pytest.mark.parametrize("variant", ["inline", "mirror"])
@pytest.mark.parametrize("victim", ["disk", "front", "hv0", "broker", "everybody"])
def test_a_disk_survives_more(rig: Rig, victim: str, variant: str, seed: int) -> None:
    """More deaths, as many as a node is started again in a minute, at other points, with more requests under way."""
    rounds = 12 if victim == "everybody" else 5
    lab = Lab(rig, seed, variant=variant, server=(SERVER, SMALL)[seed // 2 % 2], depth=seed * 3)
    replay = torment(lab, victims_of(victim, seed, rounds), well=seed % 2 == 0)
    check(lab, replay, rounds)


# ---- what the test must notice ----


@pytest.mark.parametrize("server", ["never_drains", "drops_a_write", "writes_a_sector_wrong"])
def test_a_broken_back_end_is_caught(rig: Rig, server: str) -> None:
    """A few hundred requests and one death of the back end are enough to see it."""
    lab = Lab(rig, 1, variant="inline", server=f"torture:{server}")
    lab.progress(300)
    lab.kill("disk")
    lab.progress()
    lab.end_badly()
    assert lab.complaints
    if server == "never_drains":  # its reads are right as long as it lives
        assert any(wrong.where == "the image when disk was killed" for wrong in lab.complaints), lab.complaints


def test_the_journal_counts(tmp_path: Path) -> None:
    """What the model is told is what the journal says: a lost answer, a reset, a death and a torn line included."""
    lines = [
        [1.0, "life"], [1.1, "start"], [1.2, "started"],
        [2.0, "write", 1, 0, 2, 1], [2.1, "written", 1], [2.2, "flush", 2], [2.3, "flushed", 2],
        [3.0, "write", 3, 0, 1, 3], [3.1, "written", 3],
        [4.0, "read", 4, 0, 2], [4.1, "got", 4, [3, 1]],
    ]  # fmt: skip
    head = "".join(json.dumps(line) + "\n" for line in lines)
    replay = Replay(head + '[5.0, "wri', [])
    assert replay.complaints == [] and replay.counts["torn"] == 0
    assert (replay.known.possible(0), replay.known.possible(1), replay.known.possible(2)) == ((1, 3), (1,), (0,))
    after = [[6.0, "start"], [6.1, "started"], [7.0, "read", 5, 0, 2], [7.1, "got", 5, [1, 1]]]
    tail = "".join(json.dumps(line) + "\n" for line in after)
    assert Replay(head + tail, [5.5]).complaints == []
    assert [(wrong.sector, wrong.found) for wrong in Replay(head + tail, []).complaints] == [(0, 1)]
    torn = Replay(head + '[5.0, "wri\n' + tail, [5.5])
    assert torn.counts["torn"] == 1 and torn.complaints == []
