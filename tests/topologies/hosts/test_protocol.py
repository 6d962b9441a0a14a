"""Lines between leader and agent: nothing is lost, what is no line is skipped, and configurations survive."""

from __future__ import annotations

import dataclasses
import json
import os

from hypothesis import given
from hypothesis import strategies as st

from guest_node.config import GuestConfig
from hv_node.config import DomainConfig, HypervisorConfig
from topologies.hosts.fabric import Key
from topologies.hosts.protocol import WORDS, Reader, pack_config, unpack_config
from topologies.runtime import NodeKind

HYPERVISOR = HypervisorConfig(
    "lab", "hv0", "/n", "ipc:///b", b"\x00\xff", 1, "xen", "x86_64", "intel", ("hypercall",), ("virq",), "1", "dummy",
    "/a", 0, 7, (DomainConfig("a", 1, 1 << 24, 1, firmware=b"\x01\x02"),),
)  # fmt: skip
GUEST = GuestConfig(
    "lab", "a", "/n", "ipc:///b", b"\x00\xff", 1, "hv0", 1, 1 << 24, 1, "x86_64", "auto", "auto", "mine:main",
    {"x": [1, None, {"y": 2.5}]}, {"b": 2}, 7, "/base", "/out",
)  # fmt: skip


def test_configurations_travel_as_json() -> None:
    """Bytes and tuples as well; nothing is pickled."""
    for kind, config in ((NodeKind.HYPERVISOR, HYPERVISOR), (NodeKind.GUEST, GUEST)):
        assert unpack_config(kind, json.loads(json.dumps(pack_config(config)))) == config


def test_a_key_is_not_shown() -> None:
    """Neither secret is in what is printed of it, and both arrive."""
    key = Key("tcp://10.0.0.1:1", b"the token", 1, b"s" * 40, b"p" * 40, b"secret" * 6)
    assert "secretsecret" not in repr(key)
    assert "the token" not in repr(key)
    assert Key.unpack(json.loads(json.dumps(key.pack()))) == key


def test_nodes_get_the_key_of_their_host() -> None:
    """Where there is none, they are left as they are."""
    assert Key("ipc:///b", b"t").into(GUEST) == GUEST
    key = Key("tcp://10.0.0.1:1", b"t", 1, b"s" * 40, b"p" * 40, b"x" * 40)
    assert dataclasses.asdict(key.into(GUEST))["curve"]["server"] == b"s" * 40


@given(
    st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_lines_arrive_however_they_are_cut(records: list[dict[str, object]], cuts: list[int]) -> None:
    """In their order, each once, whatever the pieces."""
    data = b"Welcome to lab2!\n" + b"".join(json.dumps(record).encode() + b"\n" for record in records) + b"[1]\n"
    read, write = os.pipe()
    reader = Reader(read)
    found, at = [], 0
    while at < len(data):
        size = cuts[at % len(cuts)]
        os.write(write, data[at : at + size])
        at += size
        found += reader.receive()
    os.close(write)
    found += reader.receive()
    os.close(read)
    assert found == records
    assert reader.ended
    assert reader.noise == "[1]"


def test_every_word_is_said_once() -> None:
    """The vocabulary names no word twice for one side."""
    names = [(word.leader, word.name) for word in WORDS]
    assert len(set(names)) == len(names)


def test_the_vocabulary_is_the_codes() -> None:
    """Every word that is sent or understood is in the table, and every word of the table is used."""
    from pathlib import Path

    import topologies.hosts as package

    source = "".join(path.read_text() for path in Path(package.__file__).parent.glob("*.py") if path.stem != "protocol")
    for word in WORDS:
        assert f'"{"op" if word.leader else "what"}": "{word.name}"' in source, word
    for side, found in (("op", True), ("what", False)):
        import re

        said = set(re.findall(rf'"{side}": "([a-z-]+)"', source)) - {"host", "log", "attach"}
        assert said <= {word.name for word in WORDS if word.leader is found} | {"node"}
