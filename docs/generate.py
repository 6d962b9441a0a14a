"""Writes the documents that show the code's tables.  `python docs/generate.py` writes them, `--check` compares.

docs/tables.md is generated as a whole.  The documents of MARKED are written by hand but for what stands between
`<!-- table: NAME -->` and `<!-- end -->`.  Only documentation is generated from the code; what tests expect is
written down a second time, from the specifications.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs import (
    all_tables,
    door_tables,
    interrupt_tables,
    nesting_tables,
    slot_tables,
    uxen_tables,
    virtio_argo_tables,
    virtio_tables,
)
from docs.render import fill

HERE = Path(__file__).parent
MARKED: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "doors.md": door_tables.TABLES,
    "interrupts.md": interrupt_tables.TABLES,
    "nesting.md": nesting_tables.TABLES,
    "addressing.md": slot_tables.ADDRESSING,
    "policy.md": slot_tables.POLICY,
    "uxen.md": uxen_tables.TABLES,
    "virtio.md": virtio_tables.TABLES,
    "virtio-argo.md": virtio_argo_tables.TABLES,
}


def documents() -> dict[Path, str]:
    """Every document as it should be."""
    found = {HERE / "tables.md": all_tables.document()}
    for name, tables in MARKED.items():
        found[HERE / name] = fill((HERE / name).read_text(), tables)
    return found


def main(arguments: Sequence[str]) -> int:
    """Write the documents, or with --check say whether they are as the code has them."""
    wrong = [path for path, text in documents().items() if not path.exists() or path.read_text() != text]
    if "--check" not in arguments:
        for path, text in documents().items():
            path.write_text(text)
        return 0
    for path in wrong:
        print(f"{path.name} is not what the code's tables say: run `make docs`", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
