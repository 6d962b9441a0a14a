"""`argosy services`: the well-known Argo ports, and uXen's, which are their precedent."""

from __future__ import annotations

import json
import sys
from typing import Final

from hmx.services import SERVICES, UXEN_PORTS
from topologies.exitcodes import ExitCode
from topologies.formats import Format
from topologies.report import print_table

SCHEMA: Final = "services/1"


def services(form: Format) -> int:
    """Print the allocation table."""
    if form is Format.JSON:
        allocated = [row._asdict() for row in SERVICES]
        precedent = [row._asdict() for row in UXEN_PORTS]
        print(json.dumps({"schema": SCHEMA, "services": allocated, "uxen": precedent}, indent=1))
        return int(ExitCode.OK)
    uxen: dict[str, list[str]] = {}
    for row in UXEN_PORTS:
        uxen.setdefault(row.service, []).append(_uxen(row.port, row.indexed))
    rows = [
        [row.name, _range(row.base, row.instances), str(row.instances), ", ".join(uxen.get(row.name, [])), row.what]
        for row in SERVICES
    ]
    titles = ["service", "ports", "instances", "uXen v4v", "what"]
    print_table(titles, rows, [False, True, True, False, False], sys.stdout)
    return int(ExitCode.OK)


def _port(number: int) -> str:
    return f"{number:#x}" if number >= 0x10000 else str(number)


def _range(base: int, instances: int) -> str:
    return _port(base) if instances == 1 else f"{_port(base)}-{_port(base + instances - 1)}"


def _uxen(port: int, indexed: bool) -> str:
    return f"{_port(port)}+n" if indexed else _port(port)
