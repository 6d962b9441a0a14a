"""Property: a text is a Topology or TopologyError with diagnostics that name the file, each short; a topology that is
accepted is read again from what is written of it.

Input: a text in UTF-8; what is not is read with replacement characters.
"""

from __future__ import annotations

from tests.fuzz.targets import Tally
from topologies import yaml12
from topologies.diagnose import TopologyError
from topologies.load import loads, resolved

TALLY = Tally()


def one_input(data: bytes) -> None:
    """Read one text."""
    TALLY.count += 1 + data.count(b"\n")
    text = data.decode("utf-8", "replace")
    try:
        topology = loads(text, "fuzz.yaml")
    except TopologyError as error:
        words = str(error)
        assert error.diagnostics and words
        assert all(diagnostic.text().startswith("fuzz.yaml") for diagnostic in error.diagnostics), words
        return
    written = resolved(topology)
    assert resolved(loads(yaml12.dump(written), "again.yaml")) == written
