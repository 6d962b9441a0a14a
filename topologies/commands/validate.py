"""`argosy validate` and `argosy schema`: what can be said about a topology without running it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TextIO

from topologies.diagnose import TopologyError, emit, printable
from topologies.exitcodes import ExitCode
from topologies.json_schema import json_schema
from topologies.load import load
from topologies.yaml12 import shown_name

Format = Literal["table", "json"]
SCHEMA: Final = "argosy/validate/1"
_NODE_KEYS: Final = "#/$defs/NodeKeys"


def validate(
    files: Sequence[str],
    format: Format = "table",
    *,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Check topology files and print every error there is.

    Args:
        files: Paths; `-` is standard input.
        format: `table`: one line for a sound file on `out`, errors on `err`.  `json`: one object on `out`.
        out: Standard output unless given.
        err: Standard error unless given.

    Returns:
        0, or 2 if any file is invalid (or none is given), or 3 if any has nothing to run.
    """
    out, err = out or sys.stdout, err or sys.stderr
    reports = [_report(path) for path in files]
    texts = [report.pop("text") for report in reports]
    if format == "json":
        valid = bool(reports) and all(report["valid"] for report in reports)
        json.dump({"schema": SCHEMA, "valid": valid, "files": reports}, out, indent=2, allow_nan=False)
        out.write("\n")
    else:
        for report, text in zip(reports, texts, strict=True):
            emit(out if report["valid"] else err, text + "\n")
        if not files:
            emit(err, "name a topology file\n")
    codes = {report["exit"] for report in reports} or {ExitCode.USAGE}
    return next(int(code) for code in (ExitCode.USAGE, ExitCode.NOTHING_TO_DO, ExitCode.OK) if code in codes)


def schema(format: Format = "json", *, out: TextIO | None = None) -> int:
    """Print the JSON Schema of a topology file, or as `table` one line for each key.  Returns 0."""
    out = out or sys.stdout
    data = json_schema()
    if format == "json":
        json.dump(data, out, indent=2)
        out.write("\n")
        return ExitCode.OK
    rows = list(_keys(data, data, ""))
    width = max(len(path) for path, _ in rows)
    for path, description in rows:
        out.write(f"{path:{width}}  {description}\n")
    return ExitCode.OK


def _report(path: str) -> dict[str, Any]:
    """What is printed about one file; `text` is for people and goes before the JSON is written."""
    file = shown_name(path)
    try:
        topology = load(path)
    except TopologyError as error:
        errors = [diagnostic.as_dict() for diagnostic in error.diagnostics]
        return {"file": file, "valid": False, "exit": error.exit_code, "errors": errors, "text": str(error)}
    counts = {
        "hypervisors": len(topology.hypervisors),
        "guests": len(topology.guests),
        "checks": len(topology.checks),
    }
    return {
        "file": file,
        "valid": True,
        "exit": ExitCode.OK,
        "name": topology.name,
        **counts,
        "errors": [],
        "text": f"{printable(file)}: valid: {_summary(topology.name, counts)}",
    }


def _summary(name: str, counts: dict[str, int]) -> str:
    parts = [f"{count} {noun if count != 1 else noun[:-1]}" for noun, count in counts.items() if count]
    return f"{name}, {', '.join(parts)}"


def _keys(schema: dict[str, Any], part: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Path and description of every key below `part`, which stands at `path`."""
    for key, inner in part.get("properties", {}).items():
        place = f"{path}.{key}" if path else key
        yield place, inner.get("description", "")
        yield from _below(schema, inner, place)


def _below(schema: dict[str, Any], part: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    reference = part.get("$ref", "")
    if reference == _NODE_KEYS:  # all keys of hypervisors and guests, which are listed there
        return
    if reference:
        yield from _keys(schema, schema["$defs"][reference.rpartition("/")[2]], path)
    for choice in part.get("anyOf", []):
        yield from _below(schema, choice, path)
    if "additionalProperties" in part and isinstance(part["additionalProperties"], dict):
        yield from _below(schema, part["additionalProperties"], f"{path}.NAME")
    if isinstance(part.get("items"), dict):
        yield from _below(schema, part["items"], f"{path}[]")
