"""`argosy compare` (issue 6, part 4): counted costs, repeatable, priced by files that name their sources."""

from __future__ import annotations

import csv
import io
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest

from guest_node.programs.back_mmio import WAYS as ACCESSES
from topologies.commands import compare as command
from topologies.compare import costs
from topologies.compare.cells import DOORS, NOTIFICATIONS, WAYS, WORKS, Cell, Work, cells
from topologies.compare.chart import ChartError, check, draw
from topologies.compare.figures import NAMES, Figures, per_request, shown
from topologies.compare.labs import topology
from topologies.compare.measure import NoFigures, measure
from topologies.compare.render import Line, as_csv, as_json, table
from topologies.devices import Access
from topologies.formats import CompareFormat
from topologies.load import loads

WORK = {work.name: work for work in WORKS}
WAY = {way.name: way for way in WAYS}


def figures(**counts: int) -> Figures:
    """Figures with these counts, all others 0."""
    return per_request({}, {name: counts.get(name, 0) for name in NAMES}, 1)


PAIR = (Line(Cell(WORK["blk-read-512"], WAY["argo-inline"]), figures(exits_l0=4, copied_by_hypervisor=700)),
        Line(Cell(WORK["net-64"], WAY["argo-mirror"]), None, "it did not end"))  # fmt: skip


def test_a_figure_is_the_difference_of_two_runs_by_their_requests() -> None:
    """What is done once - probing, negotiation - is in both runs, and in no figure."""
    found = per_request({"exits_l0": 100, "interrupts": 7}, {"exits_l0": 132, "interrupts": 10}, 16)
    assert [found.exits_l0, found.interrupts, found.hypercalls] == [Fraction(2), Fraction(3, 16), Fraction(0)]
    assert (shown(found.exits_l0), shown(found.interrupts)) == ("2", "0.19")
    with pytest.raises(ValueError, match="longer"):
        per_request({}, {}, 0)


SIZES = {"512": 512, "4KiB": 4096, "64KiB": 65536, "64": 64, "1500": 1500, "5": 5}
KINDS = {"blk-read": "read", "blk-write": "write", "net": "frame", "peek": "peek"}


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_work_is_what_its_name_says(work: Work) -> None:
    """`blk-read-4KiB-x16`: what, how many bytes, how many at once."""
    plain, _, times = work.name.partition("-x")
    what, _, size = plain.rpartition("-")
    assert (work.kind, work.size, work.at_once) == (KINDS[what], SIZES[size], int(times or 1))


BLOCK, ALL = ("read", "write"), ("read", "write", "frame")
DESIGNS = {
    "argo-inline": ("virtio-argo", "inline", "", ALL, 16),
    "argo-mirror": ("virtio-argo", "mirror", "", ALL, 16),
    "mmio-foreign": ("virtio-mmio", "", "foreign", ALL, 16),
    "mmio-foreign-kept": ("virtio-mmio", "", "foreign-kept", ALL, 16),
    "mmio-grant-map": ("virtio-mmio", "", "grant-map", ALL, 16),
    "mmio-grant-copy": ("virtio-mmio", "", "grant-copy", ALL, 16),
    "mmio-dma": ("virtio-mmio", "", "dma", ALL, 16),
    "mmio-dma-rings": ("virtio-mmio", "", "dma-rings", ALL, 16),
    "v4v": ("v4v", "", "", BLOCK, 1),
    "map": ("virtio-mmio", "", "foreign", ("peek",), 16),
    "dma": ("virtio-mmio", "", "dma", ("peek",), 16),
}


def test_the_ways_are_the_designs() -> None:
    """issue 6, parts 2 and 3: both variants over Argo, every way to reach memory, uXen's storage as the baseline."""
    assert {way.name: way[1:] for way in WAYS} == DESIGNS


def test_every_axis_has_its_cells() -> None:
    """Work, way, door, notification and depth: each is varied, and no cell is there twice."""
    every = list(cells())
    assert len({cell.name for cell in every}) == len(every)
    assert {cell.work.name for cell in every} >= {
        f"blk-{what}-{size}" for what in ("read", "write") for size in ("512", "4KiB", "64KiB")
    } | {"net-64", "net-1500"}
    assert {cell.door for cell in every} == {"hypercall", *DOORS}
    assert {cell.notification for cell in every} == {"virq", *NOTIFICATIONS}
    assert {cell.depth for cell in every} == {0, 1, 2}


@pytest.mark.parametrize("cell", list(cells()), ids=lambda cell: cell.name)
def test_the_lab_of_every_cell_is_a_sound_topology(cell: Cell) -> None:
    """What is measured could have been written by a user."""
    assert loads(json.dumps(topology(cell, 16))).name == "compare"


def test_a_request_over_argo_costs_no_mapping_and_no_round_trip() -> None:
    """VirtIO-Argo (argo.md 24.2, 24.3): the hypervisor copies; nothing is mapped, no vCPU waits for a device model."""
    one = measure(Cell(WORK["blk-read-4KiB"], WAY["argo-inline"]))
    assert one == measure(Cell(WORK["blk-read-4KiB"], WAY["argo-inline"]))
    assert one.pages_mapped == one.pages_unmapped == one.round_trips == one.copied_by_back_end == 0
    assert 4096 < one.copied_by_hypervisor < 4096 + 512
    assert one.doorbells == 2, "one message there, one back"
    many = measure(Cell(WORK["blk-read-4KiB-x16"], WAY["argo-inline"]))
    assert many.hypercalls * 8 <= one.hypercalls, "sendv is issued at the notify, once for all that was added"


@pytest.mark.parametrize(
    ("way", "mapped", "by_hypervisor", "by_back_end"),
    [
        ("mmio-foreign", True, False, True),
        ("mmio-grant-map", True, False, True),
        ("mmio-grant-copy", False, True, False),
        ("mmio-foreign-kept", False, False, True),
        ("mmio-dma", False, True, False),
        ("mmio-dma-rings", False, True, False),
    ],
)
def test_each_way_to_the_memory_costs_what_it_is(
    way: str, mapped: bool, by_hypervisor: bool, by_back_end: bool
) -> None:
    """devices.md 5.4: who maps copies by itself; and every kick through IOREQ is a round trip (devices.md 5.1)."""
    found = measure(Cell(WORK["blk-read-4KiB"], WAY[way]))
    assert (found.pages_mapped >= 1, found.pages_unmapped >= 1) == (mapped, mapped)
    assert found.pages_mapped == found.pages_unmapped, "a longer run ends with nothing more that is mapped"
    assert (found.copied_by_hypervisor >= 4096, found.copied_by_back_end >= 4096) == (by_hypervisor, by_back_end)
    assert found.doorbells == 1
    assert found.round_trips >= 1


def test_the_historical_baseline_counts_its_messages() -> None:
    """uXen storage (argo.md 23.2): a command and its reply are a v4v datagram each, copied by the hypervisor."""
    found = measure(Cell(WORK["blk-write-4KiB"], WAY["v4v"]))
    assert (found.doorbells, found.pages_mapped, found.round_trips) == (Fraction(2), Fraction(0), Fraction(0))
    assert 4096 < found.copied_by_hypervisor < 4096 + 512


def test_addresses_are_the_platforms_behind_grants_and_an_iommu_only() -> None:
    """devices.md 5.4: only then are those that a driver puts into its rings grant references; or an IOMMU's."""
    assert [way.name for way in ACCESSES if way.platform] == ["grant-map", "grant-copy", "dma-iommu"]
    assert {way.name for way in ACCESSES} == set(get_args(Access))


def test_a_small_look_is_one_call_by_dma_and_a_mapping_otherwise() -> None:
    """argo.md 24.7: one operation instead of calls that map, and their invalidation."""
    by_dma, by_map = (measure(Cell(WORK["peek-5"], WAY[way])) for way in ("dma", "map"))
    assert [*map(shown, (by_dma.hypercalls, by_dma.pages_mapped, by_dma.copied_by_hypervisor))] == ["1", "0", "5"]
    assert [*map(shown, (by_map.hypercalls, by_map.pages_mapped, by_map.pages_unmapped))] == ["2", "1", "1"]


def test_each_level_takes_its_exits() -> None:
    """devices.md 2.5: an exit that level 1 serves is taken by level 0 first."""
    deep = measure(Cell(WORK["blk-read-4KiB"], WAY["argo-inline"], depth=1))
    assert deep.exits_l0 > deep.exits_l1 > 0
    assert deep.exits_l2 == 0


def test_a_lab_that_fails_has_no_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure that was not measured: the table says why, and the exit code is 1."""

    def fail(_cell: Cell) -> Figures:
        raise NoFigures("guest front ended with exit code 1")

    monkeypatch.setattr(command, "measure", fail)
    assert command.compare(CompareFormat.TABLE, ["blk-read-512,argo-inline"], None, None) == 1
    assert "no figures: guest front ended with exit code 1" in capsys.readouterr().out


def test_words_choose_cells() -> None:
    """`--only` is repeated for more cells, and its words are set apart by commas for fewer."""
    assert [cell.name for cell in command.chosen(["net-64,argo-inline"])] == ["net-64/argo-inline/hypercall/virq/L0"]
    assert len(command.chosen(["net-64,argo-inline", "net-1500,argo-inline"])) == 2


@pytest.mark.parametrize(
    ("only", "words"),
    [
        (["net-65"], r"holds 'net-65';.*\[works: .*net-64.*; ways: .*argo-inline"),
        (["net-64", "net-65"], "holds 'net-65'"),
        (["net-65,argo-inlined,L0"], "holds 'net-65' or 'argo-inlined';"),
        (["net-64,v4v"], "holds all of 'net-64,v4v'"),
    ],
)
def test_words_that_choose_nothing(only: list[str], words: str) -> None:
    """Each `--only` chooses something; the message names the word that does not, and what there is."""
    with pytest.raises(command.NoSuchCell, match=words):
        command.chosen(only)


def test_the_three_forms_say_the_same() -> None:
    """table, csv and json: the same cells, the same figures, and why there are none."""
    lines = table(PAIR)
    assert [line.split()[0] for line in lines[:2]] == ["work", "blk-read-512"]
    assert lines[-1] == "net-64/argo-mirror/hypercall/virq/L0: no figures: it did not end"
    rows = list(csv.DictReader(io.StringIO(as_csv(PAIR))))
    assert [(row["exits_l0"], row["why"]) for row in rows] == [("4", ""), ("", "it did not end")]
    data = as_json(PAIR)
    assert data["rows"][0]["per_request"]["copied_by_hypervisor"] == 700
    assert data["rows"][1]["why"] == "it did not end"


@pytest.mark.parametrize("name", costs.shipped())
def test_the_cost_files_that_ship_name_their_sources(name: str) -> None:
    """issue 6, part 4: two cost files ship, with their sources."""
    found = costs.load(name)
    assert set(found.cycles) == set(costs.KEYS)
    for key, source in found.sources.items():
        # A publication has a year; what nobody measured says so; a recollection is neither.
        assert source.startswith("assumption") or re.search(r"\b20\d\d\b|pastebin\.com/", source), (key, source)
        assert "memory of" not in source
    assert found.cycles["reflected-twice"] > found.cycles["reflected-exit"] > found.cycles["exit"]


def test_the_prices_of_levels_add_up_to_what_was_measured() -> None:
    """DVH (ASPLOS 2020), table 3: a hypercall of a VM, a nested one and one nested twice; ours differ by the exit."""
    x86, other_exit = costs.load("x86-server"), 1575
    answered = [figures(exits_l0=1), figures(exits_l0=1, exits_l1=1), figures(exits_l0=1, exits_l1=1, exits_l2=1)]
    found = [x86.cycles_of(counted) - x86.cycles["exit"] + other_exit for counted in answered]
    assert found == [1575, 37733, 857578]


SOUND = {"ghz": 2.0, **{key: {"cycles": 10, "source": "here"} for key in costs.KEYS}}


def test_costs_price_what_was_counted() -> None:
    """Cycles by count, microseconds by the clock."""
    found = costs.parse("x.yaml", SOUND)
    counted = figures(exits_l0=1, exits_l1=1, exits_l2=1, copied_by_hypervisor=1, copied_by_back_end=1, pages_mapped=1,
                      pages_unmapped=1, interrupts=1, round_trips=1)  # fmt: skip
    assert found.cycles_of(counted) == 90
    assert found.microseconds_of(counted) == 0.045
    for place, name in enumerate(("exits_l0", "exits_l1", "exits_l2")):
        dearer = SOUND | {costs.KEYS[place]: {"cycles": 11, "source": "here"}}
        assert costs.parse("x.yaml", dearer).cycles_of(figures(**{name: 2})) == 22
    assert len(costs.shipped()) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (5, "5 is no map of costs"),
        (SOUND | {"exits": {}}, "'exits' is no cost"),
        ({"ghz": 2}, "exit is missing"),
        ({}, "ghz is missing"),
        (SOUND | {"ghz": 0}, "ghz: a clock of 0"),
        (SOUND | {"ghz": "fast"}, "ghz: 'fast' is no number of GHz"),
        (SOUND | {"exit": 5}, "exit: 5: write"),
        (SOUND | {"exit": {"cycles": -1, "source": "x"}}, "exit: -1 is no number of cycles"),
    ],
)
def test_a_cost_file_that_is_none(data: object, words: str) -> None:
    """The message names the flag, the file, the key and the value."""
    with pytest.raises(costs.CostError, match=f"^--costs: mine.yaml: {words}"):
        costs.parse("mine.yaml", data)


def test_a_cost_file_that_is_not_there() -> None:
    """It names those that ship."""
    with pytest.raises(costs.CostError, match=r"nowhere\.yaml: no such file .*x86-server"):
        costs.load("nowhere.yaml")


def test_a_cost_file_that_is_no_yaml(tmp_path: Path) -> None:
    """The place in the file, and nothing about files that are not meant."""
    (tmp_path / "mine.yaml").write_text("ghz: [1\n")
    with pytest.raises(costs.CostError, match=r"^--costs: .*mine\.yaml:1:6: '\[' without '\]'") as caught:
        costs.load(str(tmp_path / "mine.yaml"))
    assert "x86-server" not in str(caught.value)


def test_the_chart_is_drawn_and_repeatable(tmp_path: Path) -> None:
    """SVG and PNG; the same figures give the same SVG."""
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "c.png"):
        draw(PAIR, str(tmp_path / name), costs.load("x86-server"))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    with pytest.raises(ChartError, match=r"\.svg or \.png"):
        draw(PAIR, str(tmp_path / "d.pdf"))
    (tmp_path / "full.svg").symlink_to("/dev/full")
    with pytest.raises(ChartError, match=r"full\.svg: cannot be written: No space left"):
        draw(PAIR, str(tmp_path / "full.svg"))


@pytest.mark.parametrize(
    ("name", "words"), [("none/a.svg", "there is no directory .*none"), ("b.svg", "b.svg: is a directory")]
)
def test_a_chart_that_cannot_be_written_is_refused_before_the_counting(tmp_path: Path, name: str, words: str) -> None:
    """Counting takes minutes; what is wrong with the name is known before."""
    pytest.importorskip("matplotlib")
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(ChartError, match=words):
        check(str(tmp_path / name))
