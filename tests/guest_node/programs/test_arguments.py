"""Arguments of programs: what is accepted, and what the errors say.

Source: docstring of guest_node.programs.arguments; sizes in IEC units.
"""

from __future__ import annotations

from typing import Any

import pytest

from guest_node.programs import arguments as args
from guest_node.programs.arguments import ArgumentError
from hmx.argo.abi import DOMID_ANY, Address
from tests.doubles.argo_rig import simulate
from tests.doubles.guests import Lab


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [(65536, 65536), ("64KiB", 65536), ("64 KiB", 65536), ("1MiB", 1048576), ("1.5KiB", 1536),
     ("70000", 70000), ("48B", 48), (65536.0, 65536), ("1GiB", 1 << 30)],
)  # fmt: skip
def test_sizes(value: Any, bytes_: int) -> None:
    """Whole bytes, as a number or a text with a unit."""
    assert args.size({"ring": value}, "ring", 1) == bytes_


@pytest.mark.parametrize("value", ["64KB", "", "-1", -1, "0.3B", 1.5, True, None, [], "KiB", "1e3"])
def test_no_sizes(value: Any) -> None:
    """Everything else is refused, with an example of what is right."""
    with pytest.raises(ArgumentError, match=r"with\.ring: .* 64KiB"):
        args.size({"ring": value}, "ring", 1)


def test_ring_sizes_are_whole_slots() -> None:
    """A ring's length is a multiple of 16 and at least 48 (Xen public/argo.h)."""
    assert args.ring_size({}) == 130992
    assert args.ring_size({"ring": 100}) == 96
    assert args.ring_size({"ring": 48}) == 48
    with pytest.raises(ArgumentError):
        args.ring_size({"ring": 47})


@pytest.mark.parametrize(
    ("value", "s"), [(10, 10.0), ("10s", 10.0), ("500ms", 0.5), ("3", 3.0), ("2m", 120.0), ("250us", 25e-5), (0, 0.0)]
)
def test_durations(value: Any, s: float) -> None:
    """Seconds, as a number or a text with a unit."""
    assert args.seconds({"within": value}, "within", 1) == pytest.approx(s)


@pytest.mark.parametrize("value", ["soon", "10h", -1, False])
def test_no_durations(value: Any) -> None:
    """Everything else is refused."""
    with pytest.raises(ArgumentError, match="no duration"):
        args.seconds({"within": value}, "within", 1)


def test_numbers_texts_and_choices() -> None:
    """Defaults, limits, and the messages."""
    assert args.whole({}, "port", 7) == 7
    assert args.whole({"port": 2**32 - 1}, "port", 7) == 2**32 - 1
    for wrong in (2**32, -1, "7", True, 1.0):
        with pytest.raises(ArgumentError, match="whole number from 0 to 4294967295"):
            args.whole({"port": wrong}, "port", 7)
    with pytest.raises(ArgumentError):
        args.whole({"port": 0}, "port", 7, 1)
    assert args.text({"file": "x"}, "file") == "x"
    with pytest.raises(ArgumentError, match=r"with\.file: is missing"):
        args.text({}, "file")
    for wrong in (1, ""):
        with pytest.raises(ArgumentError, match="no text"):
            args.text({"file": wrong}, "file")
    assert args.choice({}, "kind", ("a", "b")) == "a"
    assert args.choice({"kind": "b"}, "kind", ("a", "b")) == "b"
    with pytest.raises(ArgumentError, match="'c' is none of a, b"):
        args.choice({"kind": "c"}, "kind", ("a", "b"))
    args.check_keys({"port": 1}, "port", "ring")
    with pytest.raises(ArgumentError, match=r"Did you mean 'port'\? \[valid: port, ring\]"):
        args.check_keys({"prot": 1}, "port", "ring")


def test_peers() -> None:
    """A guest's name, or a domain id; the error lists who is there."""

    async def main() -> None:
        lab = Lab("me", "storage", "app")
        guest = lab.guest("me", to="storage", number=9, wrong="storge", flag=True)
        assert args.peer(guest, "to") == 2
        assert args.peer(guest, "number") == 9
        assert args.peer(guest, "absent", optional=True) is None
        with pytest.raises(ArgumentError, match=r"is missing \[valid: storage, app\]"):
            args.peer(guest, "absent")
        with pytest.raises(ArgumentError, match="Did you mean 'storage'"):
            args.peer(guest, "wrong")
        with pytest.raises(ArgumentError):
            args.peer(guest, "flag")

    simulate(main)


DESTINATIONS: tuple[tuple[dict[str, Any], Address | str], ...] = (
    ({"to": "storage"}, Address(7, 2)),
    ({"to": "storage", "port": 9}, Address(9, 2)),
    ({"service": "storage", "instance": 3}, Address(0xD0003, DOMID_ANY)),
    ({"service": "storage", "to": "storage"}, r"with\.to: goes without `service`"),
    ({"service": "storage", "port": 7}, r"with\.port: goes without `service`"),
    ({"service": "storge"}, r"with\.service: 'storge' is no well-known service"),
    ({"service": "vsock", "instance": 1}, r"with\.service: vsock has no instance 1"),
    ({}, r"with\.to: is missing"),
)


@pytest.mark.parametrize(("given", "wanted"), DESTINATIONS)
def test_destinations(given: dict[str, Any], wanted: Address | str) -> None:
    """A guest and a port, or a service: an implicit destination at its well-known port (experimental)."""

    async def main() -> None:
        guest = Lab("me", "storage").guest("me", **given)
        if isinstance(wanted, Address):
            assert args.destination(guest, 7) == wanted
        else:
            with pytest.raises(ArgumentError, match=wanted):
                args.destination(guest, 7)

    simulate(main)


def test_what_a_destination_is_called() -> None:
    """In what a program says when it gives up."""
    assert args.told({"to": "x"}) == "x"
    assert args.told({"service": "net"}) == "service net"


def test_yes_or_no() -> None:
    """YAML 1.2 has two booleans, and false is the default."""
    assert [args.yes_or_no({"k": value}, "k") for value in (True, False)] == [True, False]
    assert args.yes_or_no({}, "k") is False
    for value in ("yes", 1, None):
        with pytest.raises(ArgumentError, match="neither true nor false"):
            args.yes_or_no({"k": value}, "k")


def test_names_of_outputs() -> None:
    """Plain file names; the default may be none at all."""
    assert args.output_name({"k": "a.img"}, "k") == "a.img"
    assert (args.output_name({}, "k"), args.output_name({}, "k", "b.img")) == ("", "b.img")
    for value in ("../a", "a/b", ".hidden"):
        with pytest.raises(ArgumentError, match="no plain file name; try "):
            args.output_name({"k": value}, "k")
    for wrong in ("", 5):
        with pytest.raises(ArgumentError, match="is no text"):
            args.output_name({"k": wrong}, "k")


def test_ports_of_services() -> None:
    """A service and its instance, both well known."""
    assert args.service_port({"service": "storage", "instance": 3}) == 0xD0003
    assert args.service_port({"service": "vsock"}) == 0xA4000
    with pytest.raises(ArgumentError, match="service: 'storge' is no well-known service"):
        args.service_port({"service": "storge"})
    with pytest.raises(ArgumentError, match="vsock has no instance 1"):
        args.service_port({"service": "vsock", "instance": 1})
