"""Nothing that a node reads from a socket is unpickled (contracts 7): with every unpickler replaced, labs run green."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.no_pickle import FORBIDDEN
from tests.e2e.rig import ROOT, Rig, guest, lab
from topologies.agent.entry import HOOK_VARIABLE
from topologies.exitcodes import ExitCode

pytestmark = pytest.mark.timeout(60)
HOOK = {HOOK_VARIABLE: "tests.e2e.no_pickle:forbid"}
LIBRARY = ROOT / "topologies" / "library" / "quickstart.yaml"

UNPICKLES = """
import {module} as pickle, io
async def main(guest):
    guest.log(str({call}))
"""


def logs(rig: Rig, name: str) -> dict[str, str]:
    """The log of every node of a lab."""
    return {path.parent.name: path.read_text() for path in Path(rig.base, name, "nodes").glob("*/log")}


def test_the_quickstart_runs_without_unpickling(rig: Rig) -> None:
    """Broker, hypervisor and both guests, each with the hook in place as soon as its start arguments have arrived."""
    (rig.topologies / "data.bin").write_bytes(random.Random(1).randbytes(2 << 20))
    text = LIBRARY.read_text().replace("file: ../../build/quickstart.tar", "file: data.bin")
    done = rig.start("run", rig.topology(text, "quickstart.yaml"), **HOOK)
    out, err = done.communicate(timeout=50)
    assert done.returncode == ExitCode.OK, (out, err)
    found = logs(rig, "quickstart")
    assert set(found) == {"broker", "hv0", "receiver", "sender"}
    for name, text in found.items():
        assert text.startswith(FORBIDDEN), f"{name} ran without the hook"
        assert "unpickled!" not in text, name


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("pickle", "pickle.loads(pickle.dumps(1))"),
        ("pickle", "pickle.load(io.BytesIO(pickle.dumps(1)))"),
        ("pickle", "pickle.Unpickler(io.BytesIO(pickle.dumps(1))).load()"),
        ("dill", "pickle.loads(pickle.dumps(1))"),
    ],
)
def test_the_hook_sees_whoever_unpickles(rig: Rig, module: str, call: str) -> None:
    """The same program is fine without the hook: what the first test proves is not for want of looking."""
    rig.program(UNPICKLES.format(module=module, call=call))
    path = rig.topology(lab(guest("one", "main")))
    assert rig.run("run", path).returncode == ExitCode.OK
    done = rig.start("run", path, **HOOK)
    done.communicate(timeout=50)
    assert done.returncode != ExitCode.OK
    assert "unpickled!" in logs(rig, "lab")["one"]
