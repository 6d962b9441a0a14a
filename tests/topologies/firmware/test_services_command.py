"""`argosy services` prints the allocation of well-known ports."""

from __future__ import annotations

import json

import pytest

from hmx.services import SERVICES
from topologies.commands.services import services
from topologies.formats import Format


def test_the_table_names_every_service(capsys: pytest.CaptureFixture[str]) -> None:
    """Ports as ranges, uXen's beside them."""
    assert services(Format.TABLE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["service", "ports", "instances", "uXen", "v4v", "what"]
    assert [line.split()[0] for line in lines[1:]] == [row.name for row in SERVICES]
    storage = next(line for line in lines if line.startswith("storage"))
    assert storage.split()[1:4] == ["0xd0000-0xd007f", "128", "0xd0000+n"]
    assert next(line for line in lines if line.startswith("echo")).split()[1:4] == ["7", "1", "8888"]


def test_json_has_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """One object with a schema of its own."""
    assert services(Format.JSON) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "services/1"
    assert {"name": "net", "base": 0xC0000, "instances": 256, "what": "network interface n", "source": "uXen"} in found[
        "services"
    ]
    assert [row["port"] for row in found["uxen"] if row["service"] == "net"] == [0xC0000]
