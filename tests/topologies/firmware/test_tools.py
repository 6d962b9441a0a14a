"""Debian's iasl, dtc and fdtdump accept what the planner builds, and compile what they print to the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hmx import fdt
from tests.topologies.firmware.machines import ARM, MACHINES
from topologies.firmware import acpi, devicetree

IASL, DTC, FDTDUMP = shutil.which("iasl"), shutil.which("dtc"), shutil.which("fdtdump")
needs_iasl = pytest.mark.skipif(IASL is None, reason="iasl is missing: apt-get install -y acpica-tools")
needs_dtc = pytest.mark.skipif(
    DTC is None or FDTDUMP is None, reason="dtc is missing: apt-get install -y device-tree-compiler"
)
HEADER = 36
KNOWN_WARNING = "Warning (unit_address_vs_reg): /hypervisor: node has a reg or ranges property, but no unit name"
"""Linux's binding has Xen's node without a unit address."""


def run(directory: Path, *command: str | None) -> subprocess.CompletedProcess[str]:
    """A tool's end; it has to be a good one."""
    done = subprocess.run(
        [word for word in command if word is not None], cwd=directory, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


@needs_iasl
@pytest.mark.parametrize("name", MACHINES)
def test_iasl_disassembles_every_table(name: str, tmp_path: Path) -> None:
    """Without a word about errors; and its output compiles to the same bytes, but for the compiler's own signature.

    The root pointer is no table: iasl has nothing for it.  A DSDT that notifies a device of the SSDT compiles to one
    with an External, so there it is only disassembled.
    """
    blob = acpi.build(MACHINES[name], 0xF_0000)
    for signature in blob.tables:
        if signature == "RSD PTR ":
            continue
        (tmp_path / f"{signature}.aml").write_bytes(blob.table(signature))
        done = run(tmp_path, IASL, "-d", f"{signature}.aml")
        words = (done.stdout + done.stderr).lower()
        assert "error" not in words and "could not" not in words and "invalid" not in words, words
        source = (tmp_path / f"{signature}.dsl").read_text()
        assert f"[{signature}]" in source or f'"{signature}"' in source
        assert "unknown" not in source.lower() or name == "x86-ged-argo"
        if (name, signature) == ("x86-ged-argo", "DSDT"):
            continue
        done = run(tmp_path, IASL, "-oa", "-p", "again", f"{signature}.dsl")
        assert "0 Errors, 0 Warnings" in done.stdout, done.stdout
        again = (tmp_path / "again.aml").read_bytes()
        assert again[HEADER:] == blob.table(signature)[HEADER:] and again[4:9] == blob.table(signature)[4:9]


@needs_iasl
def test_iasl_reads_what_was_meant(tmp_path: Path) -> None:
    """Names, ids and resources in its own words."""
    blob = acpi.build(MACHINES["x86-uxen-drivers"], 0xF_0000)
    words = {
        "DSDT": ['EisaId ("PNP0C02")', '"UXV0100"', "IRQNoFlags ()", "SystemIO, 0x0330, 0x10", '"LNRO0005"', "Zero)",
                 "Notify (\\_SB.VGEN, 0x80)", "Method (_EVT, 1, Serialized)", '"VM_Gen_Counter"', '"ACPI0013"'],
        "SSDT": ['"ARGO0001"', "Name (ADRS, Package (0x04)", '"cpuid"', "0x41726730", "0xFEDF8000", "0x0000000A"],
        "APIC": ["Processor Local x2APIC", "Interrupt Source Override", "I/O APIC"],
        "FACP": ["Hardware Reduced (V5) : 1", "Hypervisor ID"],
    }  # fmt: skip
    for signature, expected in words.items():
        (tmp_path / f"{signature}.aml").write_bytes(blob.table(signature))
        run(tmp_path, IASL, "-d", f"{signature}.aml")
        source = (tmp_path / f"{signature}.dsl").read_text()
        for text in expected:
            assert text in source, (signature, text)


@needs_dtc
@pytest.mark.parametrize("name", ARM)
@pytest.mark.parametrize("personality", ["xen", "kvm"])
def test_dtc_and_fdtdump_accept_the_tree(name: str, personality: str, tmp_path: Path) -> None:
    """Without a warning but the known one; and dtc compiles its own output to a tree with the same content."""
    blob = devicetree.build(replace(MACHINES[name], personality=personality))
    (tmp_path / "tree.dtb").write_bytes(blob)
    done = run(tmp_path, DTC, "-I", "dtb", "-O", "dts", "-o", "tree.dts", "tree.dtb")
    said = [line for line in done.stderr.splitlines() if KNOWN_WARNING not in line]
    assert not said, said
    run(tmp_path, DTC, "-q", "-I", "dts", "-O", "dtb", "-o", "again.dtb", "tree.dts")
    again = (tmp_path / "again.dtb").read_bytes()
    read = [[(node.path, node.properties) for node in fdt.parse(data).root.walk()] for data in (blob, again)]
    assert read[0] == read[1]
    dumped = run(tmp_path, FDTDUMP, "tree.dtb").stdout
    assert "// magic:\t\t0xd00dfeed" in dumped and "argosy,virt" in dumped
