"""Firmware that the planner writes for a guest: ACPI tables and flattened device trees.

A :class:`topologies.firmware.machine.Machine` says what there is; :mod:`topologies.firmware.acpi` and
:mod:`topologies.firmware.devicetree` turn it into bytes, which the hypervisor places in the guest's memory.
"""
