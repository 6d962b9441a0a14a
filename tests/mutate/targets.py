"""The tables that `make mutate` changes, cell by cell, and the tests that must notice.

A new table: a row in TARGETS with the tests that hold it (they run in the process that imports the table, so
tests that start another interpreter count for nothing).  Columns that only speak to people - a source, a note, a
sentence - go into `words`.  A cell that no test can hold goes into `survivors` with the reason; a whole table,
into EXEMPT.
"""

from __future__ import annotations

from typing import Final

from tests.mutate.campaign import Target

_TRAPS: Final = ("tests/hmx/test_trap_abi.py", "tests/hmx/test_vcpu_area.py")
_ABI: Final = ("tests/hmx/argo/test_abi.py",)
_EVTCHN: Final = ("tests/hmx/test_evtchn_page.py", "tests/hv_node/test_hypervisor.py")
_DOORS: Final = (
    "tests/hv_node/test_resolve.py",
    "tests/hv_node/test_doors_golden.py",
    "tests/hv_node/test_hypervisor.py",
)
_PROGRAMS: Final = ("tests/guest_node/programs/test_load.py", "tests/guest_node/programs/test_arguments.py")
_ARGO: Final = ("tests/hv_node/argo/test_precedence.py",)
_FRAMES: Final = ("tests/broker/test_frames.py", "tests/broker/test_lanes.py", "tests/broker/test_session.py")
_ENVELOPE: Final = ("tests/broker/test_envelope.py",)
_LIVES: Final = ("tests/broker/test_lifecycle.py", "tests/broker/test_router.py")
_RECORDS: Final = ("tests/broker/test_records.py", "tests/broker/test_member.py", "tests/broker/test_router.py")
_STREAM: Final = (
    "tests/guest_node/drivers/test_stream_table.py",
    "tests/guest_node/drivers/test_stream_golden.py",
    "tests/guest_node/drivers/test_sockets_golden.py",
)
_AGENT: Final = (
    "tests/topologies/agent/test_tables.py",
    "tests/topologies/agent/test_core.py",
    "tests/topologies/agent/test_restarts.py",
    "tests/topologies/agent/test_schedules.py",
)
_YAML: Final = ("tests/topologies/test_yaml12.py", "tests/topologies/test_golden_errors.py")
_SCHEMA: Final = (
    "tests/topologies/test_golden_errors.py",
    "tests/topologies/test_crosscheck.py",
    "tests/topologies/test_schema.py",
)

TARGETS: Final = (
    Target("hmx.errno", "Errno", _ABI),
    Target("hmx.argo.abi", "*", _ABI),
    Target("hmx.argo.abi", "Op", _ABI),
    Target("hmx.argo.abi", "RegisterFlag", _ABI),
    Target("hmx.argo.abi", "NotifyFlag", _ABI),
    Target("hmx.memory", "PAGE_RULES", ("tests/hmx/test_memory.py",)),
    Target("hmx.trap", "Arch", _TRAPS),
    Target("hmx.trap", "Kind", _TRAPS),
    Target("hmx.trap", "FrameFlag", _TRAPS),
    Target("hmx.trap", "Outcome", _TRAPS),
    Target("hmx.trap", "Vector", _TRAPS),
    Target("hmx.trap", "X86Reg", _TRAPS),
    Target("hmx.vcpu_area", "Word", _TRAPS),
    Target("hmx.vcpu_area", "Post", _TRAPS),
    Target("hmx.doors", "CONVENTIONS", ("tests/hmx/test_doors.py",), words=("source",)),
    Target("hmx.doors", "DOOR_COSTS", ("tests/hmx/test_doors.py",), words=("source",)),
    Target("hmx.xen", "Hypercall", ("tests/hmx/test_xen.py",)),
    Target("hmx.xen", "EvtchnOp", ("tests/hmx/test_xen.py",)),
    Target("hmx.xen", "EvtchnState", ("tests/hmx/test_xen.py",)),
    Target("broker.frames", "Lane", _FRAMES),
    Target("broker.frames", "FrameKind", _FRAMES),
    Target("broker.frames", "LANES", _FRAMES),
    Target("broker.frames", "KINDS", _FRAMES),
    Target("broker.envelope", "KINDS", _ENVELOPE),
    Target("broker.envelope", "FIELDS", _ENVELOPE),
    Target("broker.lifecycle", "STATES", _LIVES),
    Target("broker.lifecycle", "TRANSITIONS", _LIVES),
    Target("broker.member", "TRANSITIONS", ("tests/broker/test_member.py",)),
    Target("broker.records", "VOCABULARY", _RECORDS),
    Target("broker.refusals", "REFUSALS", _LIVES, words=("meaning",)),
    Target("hv_node.argo.options", "BOOL_WORDS", ("tests/hv_node/argo/test_options.py",)),
    Target("hv_node.argo.order", "REFUSALS", _ARGO, words=("source",)),
    Target("hv_node.doors.tables", "XEN_X86_64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "INTEL", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "PERSONALITIES", _DOORS),
    Target("guest_node.drivers.stream_table", "Flag", _STREAM),
    Target("guest_node.drivers.stream_table", "PRECEDENCE", _STREAM),
    Target("guest_node.drivers.stream_table", "ROWS", _STREAM, words=("note",)),
    Target("guest_node.programs", "BUILTINS", _PROGRAMS, words=("summary",)),
    Target("guest_node.programs.arguments", "SIZE_UNITS", _PROGRAMS),
    Target("guest_node.programs.arguments", "TIME_UNITS", _PROGRAMS),
    Target("topologies.agent.phases", "PHASES", _AGENT, words=("doing",)),
    Target("topologies.agent.phases", "NODE_MOVES", _AGENT),
    Target("topologies.agent.phases", "RESTARTS", _AGENT),
    Target("topologies.availability", "LATER", _SCHEMA),
    Target("topologies.availability", "SECTIONS", _SCHEMA),
    Target("topologies.bench.rows", "TARGETS", ("tests/topologies/bench/test_targets.py",)),
    Target("topologies.crosscheck", "REFERENCES", _SCHEMA),
    Target("topologies.crosscheck", "RESERVED", _SCHEMA),
    Target("topologies.exitcodes", "ExitCode", ("tests/topologies/test_exitcodes.py",)),
    Target("topologies.exitcodes", "EXIT_CODES", ("tests/topologies/test_exitcodes.py",)),
    Target("topologies.programs", "BUILTINS", _SCHEMA),
    Target("topologies.report", "COLUMNS", ("tests/topologies/test_report.py",)),
    Target("topologies.translate", "WORDS", _SCHEMA),
    Target("topologies.units", "SIZE_UNITS", ("tests/topologies/test_units.py",)),
    Target("topologies.units", "DURATION_UNITS", ("tests/topologies/test_units.py",)),
    Target("topologies.units", "SPELLINGS", ("tests/topologies/test_units.py",)),
    Target("topologies.yaml12", "CORE_SCHEMA", _YAML),
    Target("topologies.yaml12", "NOTICED", _YAML),
    Target("topologies.yaml12", "OPENED", _YAML),
)

EXEMPT: Final[dict[str, str]] = {
    "topologies.bench.rows.GUESTS": "which program measures a row: another one fails the row's own proof",
    "topologies.bench.rows.ROWS": "how much is measured, not a fact: any ring and any count give a valid row",
    "topologies.commands.doctor.LOOKS": "names and words for people, and functions that look at this machine",
}
"""Tables that are not mutated, and why."""
