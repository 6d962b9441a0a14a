"""The tables that `make mutate` changes, cell by cell, and the tests that must notice.

A new table: a row in TARGETS with the tests that hold it (they run in the process that imports the table, so
tests that start another interpreter count for nothing).  Columns that only speak to people - a source, a note, a
sentence - go into `words`.  A cell that no test can hold goes into `survivors` with the reason; a whole table,
into EXEMPT.
"""

from __future__ import annotations

from typing import Final

from tests.mutate.campaign import Survivor, Target
from tests.mutate.virtio_targets import VIRTIO

_COMPARE: Final = ("tests/topologies/compare/test_compare.py",)
_TRAPS: Final = ("tests/hmx/test_trap_abi.py", "tests/hmx/test_vcpu_area.py")
_ABI: Final = ("tests/hmx/argo/test_abi.py",)
_EVTCHN: Final = ("tests/hmx/test_evtchn_page.py", "tests/hv_node/test_hypervisor.py")
_DOORS: Final = (
    "tests/hv_node/test_door_tables.py",
    "tests/hv_node/test_resolve.py",
    "tests/hv_node/test_doors_all_golden.py",
    "tests/hv_node/doors/test_nesting_tables.py",
)
_CALLS: Final = ("tests/hmx/test_doors.py", "tests/hv_node/test_door_tables.py")
_APIC: Final = ("tests/hmx/test_lapic.py", "tests/hmx/test_lapic_golden.py")
_PROGRAMS: Final = ("tests/guest_node/programs/test_load.py", "tests/guest_node/programs/test_arguments.py")
_ARGO: Final = ("tests/hv_node/argo/test_precedence.py",)
_FRAMES: Final = ("tests/broker/test_frames.py", "tests/broker/test_lanes.py", "tests/broker/test_session.py")
_ENVELOPE: Final = ("tests/broker/test_envelope.py",)
_LIVES: Final = (
    "tests/broker/test_lifecycle.py",
    "tests/broker/test_router.py",
    "tests/broker/test_router_lives.py",
)
_RECORDS: Final = ("tests/broker/test_records.py", "tests/broker/test_member.py", "tests/broker/test_router.py")
_STREAM: Final = (
    "tests/guest_node/drivers/test_stream_table.py",
    "tests/guest_node/drivers/test_stream_golden.py",
    "tests/guest_node/drivers/test_sockets_golden.py",
    "tests/guest_node/drivers/test_datagrams_golden.py",
    "tests/guest_node/drivers/test_passes_golden.py",
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
_SERVICES: Final = ("tests/hmx/test_services.py",)
_UXEN_ENUM: Final = ("tests/hmx/test_uxen_enum.py",)
_ACPI: Final = ("tests/hmx/test_aml.py", "tests/hmx/test_acpi.py", "tests/topologies/firmware/test_acpi.py")
_FIRMWARE: Final = ("tests/hmx/test_firmware.py",)
_TREE: Final = ("tests/topologies/firmware/test_devicetree.py",)
_UXEN_PLATFORM: Final = ("tests/hv_node/test_uxen_platform.py",)
_NESTING: Final = (
    "tests/hv_node/doors/test_nesting_tables.py",
    "tests/hv_node/doors/test_nesting_executor.py",
)
_SLOTS: Final = (
    "tests/hv_node/levels/test_slots.py",
    "tests/hv_node/levels/test_slot_ops.py",
    "tests/hv_node/levels/test_delegation.py",
    "tests/hv_node/levels/test_confined.py",
    "tests/hv_node/levels/test_revocation.py",
)
_POLICY: Final = ("tests/hv_node/levels/test_policy.py", "tests/hv_node/levels/test_viptables.py")
_V4V: Final = ("tests/hmx/v4v/test_abi.py",)
_GIC: Final = ("tests/hmx/test_gic.py",)
_GIC_MAPS: Final = ("tests/hmx/test_gic_tables.py",)
_GIC_LAYOUTS: Final = ("tests/hv_node/test_gic_tables.py",)

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
    Target("hmx.doors", "CONVENTIONS", _CALLS, words=("source",)),
    Target("hmx.doors", "DOOR_COSTS", ("tests/hmx/test_doors.py",), words=("source",)),
    Target("hmx.doors", "CALL_INSTRUCTIONS", ("tests/hmx/test_doors.py",), words=("source",)),
    Target("hmx.hypervisors", "SIGNATURES", ("tests/hv_node/test_door_tables.py",), words=("source",)),
    Target("hmx.hypervisors", "UIDS", ("tests/hv_node/test_door_tables.py",), words=("source",)),
    Target(
        "hmx.hypervisors", "HYPERVISOR_NODES", (*_TREE, "tests/guest_node/test_hypervisor_node.py"), words=("source",)
    ),
    Target("hmx.notify", "MODES", ("tests/hv_node/test_door_tables.py",), words=("note",)),
    Target("hmx.notify", "Mode", ("tests/hv_node/test_door_tables.py",)),
    Target("hmx.notify", "ModeFeature", ("tests/hv_node/test_door_tables.py",)),
    Target("hmx.notify", "NotifyOp", ("tests/hv_node/test_door_tables.py",)),
    Target("hmx.cpu.apic_regs", "ApicError", _APIC),
    Target("hmx.cpu.apic_regs", "DESTINATION_FORMATS", _APIC, words=("name", "source")),
    Target("hmx.cpu.apic_regs", "DeliveryMode", (*_APIC, "tests/hv_node/test_msi.py")),
    Target("hmx.cpu.apic_regs", "ICR_FIELDS", _APIC, words=("source",)),
    Target("hmx.cpu.apic_regs", "ICR_MODES", _APIC, words=("source",)),
    Target("hmx.cpu.apic_regs", "REGISTERS", _APIC, words=("source",)),
    Target("hmx.cpu.apic_regs", "Shorthand", _APIC),
    Target("hmx.gic", "IntidKind", _GIC),
    Target("hmx.gic", "LrState", _GIC),
    Target("hmx.gic", "INTID_RANGES", _GIC, words=("source",)),
    Target("hmx.gic", "GICD", _GIC_MAPS),
    Target("hmx.gic", "GICC", _GIC_MAPS),
    Target("hmx.gic", "GICR", _GIC_MAPS),
    Target("hmx.gic", "GITS", _GIC_MAPS),
    Target("hmx.gic", "GICH_LR", _GIC),
    Target("hmx.gic", "ICH_LR", _GIC),
    Target("hmx.gic", "ICH_VMCR", _GIC),
    Target("hmx.gic", "SHARED_LR", _GIC),
    Target("hmx.gic", "SHARED_LR_STATE", _GIC),
    Target("hmx.cpu.gic_registers", "REGISTERS", ("tests/hmx/test_gic_cpu.py", *_GIC_MAPS)),
    Target("hmx.xen", "Hypercall", ("tests/hmx/test_xen.py",)),
    Target("hmx.xen", "EvtchnOp", ("tests/hmx/test_xen.py",)),
    Target("hmx.xen", "EvtchnState", ("tests/hmx/test_xen.py",)),
    Target("hmx.services", "SERVICES", _SERVICES, words=("what", "source")),
    Target("hmx.services", "UXEN_PORTS", _SERVICES, words=("source",)),
    Target("hmx.uxen_enum", "CONSUMERS", _UXEN_ENUM, words=("source",)),
    Target("hmx.uxen_enum", "ACPI_CHILDREN", _UXEN_ENUM),
    Target("hmx.uxen_enum", "PROPERTIES", _UXEN_ENUM, words=("source",)),
    Target("hmx.uxen_enum", "Polarity", _UXEN_ENUM),
    Target("hmx.uxen_enum", "Control", _UXEN_ENUM),
    Target("hmx.uxen_enum", "ControlRegister", _UXEN_ENUM),
    Target("hmx.uxen_enum", "DeviceType", _UXEN_ENUM),
    Target("hmx.uxen_enum", "PropertyType", _UXEN_ENUM),
    Target("hmx.aml", "INTEGERS", _ACPI),
    Target("hmx.aml", "CONSTANTS", _ACPI),
    Target("hmx.acpi", "FADT_FIELDS", _ACPI),
    Target("hmx.acpi", "MADT_ENTRIES", _ACPI),
    Target("hmx.firmware", "FACTS", _FIRMWARE),
    Target("hmx.firmware", "VectorPolicy", _FIRMWARE),
    Target("hmx.slots", "SlotOp", _SLOTS),
    Target("hmx.slots", "DelegateFlag", _SLOTS),
    Target("hmx.slots", "EndpointFlag", _SLOTS),
    Target("hmx.slots", "*", _SLOTS),
    Target("hmx.footprints", "STRUCTURES", ("tests/hmx/test_mirror.py",)),
    Target(
        "hmx.footprints",
        "XEN_CALLS",
        ("tests/hmx/test_mirror.py",),
        survivors=(Survivor("*.size", "both structures have 24 bytes, so either's size is the other's"),),
    ),
    Target("hmx.mirror", "SECTIONS", ("tests/hmx/test_mirror.py",)),
    Target("hmx.uxen_platform", "*", _UXEN_PLATFORM, words=("what",)),
    Target("hmx.uxen_platform", "BARS", _UXEN_PLATFORM, words=("what",)),
    Target("hmx.uxen_platform", "Register", _UXEN_PLATFORM),
    Target("hmx.uxen_stor", "*", ("tests/hmx/test_uxen_stor.py",)),
    Target("hmx.v4v.abi", "*", _V4V, words=("source",)),
    Target("hmx.v4v.abi", "Op", _V4V),
    Target("hmx.v4v.abi", "NotifyFlag", _V4V),
    Target("hmx.v4v.differences", "NUMBERS", _V4V, words=("source",)),
    Target(
        "hmx.v4v.differences",
        "HABITS",
        ("tests/hv_node/v4v/test_golden.py::test_every_habit_has_its_case",),
        words=("aspect", "v4v", "argo", "source"),
    ),
    Target("broker.monitor", "FAILURES", ("tests/broker/test_keys.py",), words=("meaning",)),
    Target("broker.zap", "Status", ("tests/broker/test_keys.py",)),
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
    Target("hv_node.doors.leaves", "LEAVES", _DOORS, words=("source", "4")),
    Target("hv_node.doors.leaves", "VENDORS", _DOORS, words=("source",)),
    Target("hv_node.doors.silicon", "AMD", _DOORS, words=("source",)),
    Target("hv_node.doors.silicon", "ARMV8", _DOORS, words=("source",)),
    Target("hv_node.doors.silicon", "INTEL", _DOORS, words=("source",)),
    Target("hv_node.doors.silicon", "_X86", _DOORS, words=("source",)),
    Target("hv_node.doors.smccc", "FUNCTIONS", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "DOOR_INTERCEPT", _DOORS),
    Target("hv_node.doors.tables", "NAMED", _DOORS),
    Target("hv_node.doors.tables", "ACRN", _DOORS),
    Target("hv_node.doors.tables", "AX", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "FIRMWARE", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "HYPERV_AARCH64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "HYPERV_X86_64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "JAILHOUSE_AARCH64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "JAILHOUSE_X86_64", _DOORS),
    Target("hv_node.doors.tables", "KVM_AARCH64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "KVM_X86_64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "SMCCC", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "UXEN", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "VMWARE", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "WHPX", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "XEN_AARCH64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "XEN_VIRIDIAN", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "XEN_X86_64", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "_ARM", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "_GIC", _DOORS, words=("source",)),
    Target("hv_node.doors.tables", "_HVM", _DOORS, words=("source",)),
    Target("hv_node.interrupts.msi", "FIELDS", ("tests/hv_node/test_msi.py",), words=("source",)),
    Target("hv_node.interrupts.msi", "MODES", ("tests/hv_node/test_msi.py",), words=("source",)),
    Target("hv_node.interrupts.gicd", "SGIR", _GIC_LAYOUTS),
    Target("hv_node.interrupts.gicd", "SGI1R", _GIC_LAYOUTS),
    Target("hv_node.interrupts.gicd", "IROUTER", _GIC_LAYOUTS),
    Target(
        "hv_node.interrupts.gicr",
        "PER_INTID",
        (*_GIC_LAYOUTS, "tests/hv_node/test_gic_frames.py", "tests/hv_node/test_gic_golden.py"),
        (Survivor("PER_INTID['?PENDSGIR'].zeroes", "no source added to or taken from an SGI changes nothing"),),
    ),
    Target("hv_node.interrupts.gicr", "TYPER_V2", _GIC_LAYOUTS),
    Target("hv_node.interrupts.gicr", "TYPER_V3", _GIC_LAYOUTS),
    Target("hv_node.interrupts.gicr", "GICR_TYPER", _GIC_LAYOUTS),
    Target("hv_node.interrupts.gicr", "PROPBASER", _GIC_LAYOUTS),
    Target("hv_node.interrupts.gicr", "LPI_CONFIG", _GIC_LAYOUTS),
    Target("hv_node.interrupts.its", "COMMANDS", ("tests/hv_node/test_gic_its.py",)),
    Target("hv_node.interrupts.its", "GITS_TYPER", _GIC_LAYOUTS),
    Target("hv_node.interrupts.its", "CBASER", _GIC_LAYOUTS),
    Target("hv_node.interrupts.its", "CTLR", _GIC_LAYOUTS),
    Target("hv_node.interrupts.v2m", "V2M", ("tests/hv_node/test_gic_frames.py",)),
    Target("hv_node.interrupts.v2m", "MSI_TYPER", _GIC_LAYOUTS),
    Target("hv_node.doors.nesting", "RULES", _NESTING, words=("source",)),
    Target("hv_node.doors.nesting", "EXTENSIONS", _NESTING, words=("source",)),
    Target("hv_node.doors.outer", "STATEFUL", _NESTING),
    Target(
        "hv_node.levels.far",
        "_NOTICES",
        (
            "tests/hv_node/levels/test_level.py",
            "tests/hv_node/levels/test_lives.py",
            "tests/hv_node/levels/test_forgeries.py",
        ),
    ),
    Target("hv_node.levels.notices", "NOTICES", ("tests/hv_node/levels/test_notice_table.py",)),
    Target("hv_node.levels.slots", "REFUSALS", _SLOTS, words=("source",)),
    Target("hv_node.levels.delegation", "DELEGATE_REFUSALS", _SLOTS, words=("note",)),
    Target("hv_node.levels.slot_ops", "REFUSALS", _SLOTS, words=("note",)),
    Target("hv_node.levels.rules", "FRONT_ENDS", _POLICY, words=("source",)),
    Target("hv_node.levels.policy", "OPERATIONS", _POLICY, words=("source",)),
    Target("hv_node.levels.slot_table", "*", _SLOTS),
    Target("hv_node.levels.narrowing", "*", _SLOTS),
    Target("hv_node.levels.viptables", "VERDICTS", _POLICY),
    Target("hv_node.v4v.limits", "LIMITS", ("tests/hv_node/v4v/test_limits.py",), words=("source",)),
    Target("hv_node.v4v.order", "REFUSALS", ("tests/hv_node/v4v/test_order.py",), words=("source",)),
    Target("guest_node.drivers.stream_table", "Flag", _STREAM),
    Target("guest_node.drivers.stream_table", "PRECEDENCE", _STREAM),
    Target("guest_node.drivers.stream_table", "ROWS", _STREAM, words=("note",)),
    Target("guest_node.drivers.dialect", "*", ("tests/guest_node/drivers/test_v4v.py",)),
    Target("guest_node.kernel.v4v", "WAYS", ("tests/guest_node/drivers/test_v4v.py",), words=("source",)),
    Target("guest_node.programs.scsi", "Status", ("tests/guest_node/programs/test_v4v_storage.py",)),
    Target("guest_node.programs.scsi", "Opcode", ("tests/guest_node/programs/test_v4v_storage.py",)),
    Target("guest_node.programs", "BUILTINS", _PROGRAMS, words=("summary",)),
    Target("guest_node.programs.arguments", "SIZE_UNITS", _PROGRAMS),
    Target("guest_node.programs.arguments", "TIME_UNITS", _PROGRAMS),
    Target("topologies.agent.phases", "PHASES", _AGENT, words=("doing",)),
    Target("topologies.agent.phases", "NODE_MOVES", _AGENT),
    Target("topologies.agent.phases", "RESTARTS", _AGENT),
    Target("topologies.bench.rows", "TARGETS", ("tests/topologies/bench/test_targets.py",)),
    Target(
        "topologies.crosscheck",
        "REFERENCES",
        _SCHEMA,
        (Survivor("REFERENCES[4].also", "what may be a guest may be a guest"),),
    ),
    Target("topologies.crosscheck", "RESERVED", _SCHEMA),
    Target("topologies.exitcodes", "ExitCode", ("tests/topologies/test_exitcodes.py",)),
    Target("topologies.exitcodes", "EXIT_CODES", ("tests/topologies/test_exitcodes.py",)),
    Target("topologies.facts", "FACTS", ("tests/topologies/test_facts.py",), words=("meaning",)),
    Target("topologies.firmware.acpi", "REVISIONS", _ACPI),
    Target("topologies.firmware.acpi", "HYPERVISOR_IDS", _ACPI, words=("source",)),
    Target("topologies.hosts.protocol", "WORDS", ("tests/topologies/hosts/test_protocol.py",), words=("meaning",)),
    Target("topologies.programs", "BUILTINS", _SCHEMA),
    Target("topologies.report", "COLUMNS", ("tests/topologies/test_report.py",)),
    Target("topologies.translate", "WORDS", _SCHEMA),
    Target("topologies.units", "SIZE_UNITS", ("tests/topologies/test_units.py",)),
    Target("topologies.units", "DURATION_UNITS", ("tests/topologies/test_units.py",)),
    Target("topologies.units", "SPELLINGS", ("tests/topologies/test_units.py",)),
    Target("topologies.yaml12", "CORE_SCHEMA", _YAML),
    Target("topologies.yaml12", "NOTICED", _YAML),
    Target("topologies.yaml12", "OPENED", _YAML),
    Target("topologies.compare.cells", "WORKS", _COMPARE),
    Target("topologies.compare.cells", "WAYS", _COMPARE),
    *VIRTIO,
)

EXEMPT: Final[dict[str, str]] = {
    "hmx.v4v.abi.OPERATIONS": "a part of hmx.v4v.abi.*, which is mutated whole",
    "topologies.bench.labs.HOMES": "where a row's guests live: a row proves by itself what its messages crossed",
    "topologies.bench.rows.GUESTS": "which program measures a row: another one fails the row's own proof",
    "topologies.bench.rows.ROWS": "how much is measured, not a fact: any ring and any count give a valid row",
    "topologies.commands.doctor.LOOKS": "names and words for people, and functions that look at this machine",
}
"""Tables that are not mutated by themselves, and why."""
