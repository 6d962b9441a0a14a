"""The values that a topology's keys take, and what all its maps share: names, sizes, durations, fixed choices.

Each type checks what a file says, in the words of a topology, and knows how JSON Schema and a written file show it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from hmx.uxen_enum import MAX_UNITS
from topologies.diagnose import describe, show
from topologies.units import UnitError, format_duration, format_size, parse_duration, parse_size

PAGE_SIZE: Final = 4096
MIN_MEMORY: Final = 1 << 20
MAX_MEMORY: Final = 64 << 30
MAX_VCPUS: Final = 32  # vcpu_info entries in shared_info (Xen public/arch-x86/xen.h, XEN_LEGACY_MAX_VCPUS)
MAX_EXIT: Final = 255
NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MAX_NAME: Final = 63


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """The error of a validator here: what is wrong, and how to mend it."""
    return PydanticCustomError("argosy", "{message}", {"message": message, "hint": hint})


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise wrong(f"{show(text)} is no name", "letters, digits, '.', '_' and '-', a letter or digit first")
    if len(text) > MAX_NAME:
        raise wrong(f"{show(text)} is too long for a name", f"at most {MAX_NAME} characters")
    return text


def _size(value: Any) -> int:
    if isinstance(value, str):
        try:
            return parse_size(value)
        except UnitError as error:
            raise wrong(error.message, error.hint) from None
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise wrong(f"{show(value)}: a size is not negative", "write a number and a unit, such as 64MiB")
        return value
    raise wrong(f"expected a size, not {describe(value)}", "write a number and a unit, such as 64MiB")


def _duration(value: Any) -> int:
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except UnitError as error:
            raise wrong(error.message, error.hint) from None
    hint = "write a number and a unit, such as 500ms or 5s"
    if isinstance(value, int) and not isinstance(value, bool):
        raise wrong(f"{show(value)} has no unit", f"write {value}s for seconds" if 0 <= value < 10**9 else hint)
    raise wrong(f"expected a duration, not {describe(value)}", hint)


def _memory(size: int) -> int:
    if not MIN_MEMORY <= size <= MAX_MEMORY:
        limits = f"from {format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)}"
        raise wrong(f"{format_size(size)} is out of range for a guest's memory", limits)
    if size % PAGE_SIZE:
        below = format_size(size - size % PAGE_SIZE)
        raise wrong(f"{format_size(size)} is not a multiple of {PAGE_SIZE} bytes", f"write {below} for instance")
    return size


def _within(duration: int) -> int:
    if duration == 0:
        raise wrong("a deadline of 0s has always passed", "write a number and a unit, such as 500ms or 5s")
    return duration


NAME_JSON: Final[dict[str, Any]] = {"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": MAX_NAME}
SIZE_JSON: Final[dict[str, Any]] = {
    "type": ["string", "integer"],
    "pattern": r"^[0-9]+(\.[0-9]+)? ?([KMGT]iB|B)?$",
    "minimum": 0,
}
TIME_JSON: Final[dict[str, Any]] = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ns|us|ms|s|m|h)$"}

Name = Annotated[str, AfterValidator(_name), WithJsonSchema(NAME_JSON)]
Reference = Annotated[str, WithJsonSchema(NAME_JSON)]  # to a name; that it is one is seen where it is declared
Memory = Annotated[
    int,
    BeforeValidator(_size),
    AfterValidator(_memory),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema(SIZE_JSON),
]
Duration = Annotated[
    int,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(TIME_JSON),
]
Deadline = Annotated[
    int,
    BeforeValidator(_duration),
    AfterValidator(_within),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(TIME_JSON),
]
Share = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?%$")]
Rate = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?[KMG]?bit)?$")]

Personality = Literal[
    "xen", "xen-viridian", "kvm", "hyperv", "vmware", "acrn", "uxen", "ax", "whpx", "jailhouse", "smccc", "firmware",
    "pv-only", "bare-metal",
]  # fmt: skip
Arch = Literal["x86_64", "aarch64"]
Cpu = Literal["intel", "amd", "armv8"]
Door = Literal["hypercall", "msr", "cpuid", "pio", "mmio", "hvc", "smc"]
GuestDoor = Literal["auto", "hypercall", "msr", "cpuid", "pio", "mmio", "hvc", "smc"]
Notification = Literal["virq", "line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority"]
GuestNotification = Literal["auto", "virq", "line", "vector-per-cpu", "vector-per-ring", "vectors-by-priority"]
Restart = Literal["never", "on-failure"]
Operation = Literal["enable", "register_single_source", "register_any_source", "send"]
Port = Annotated[int, Field(ge=0, le=(1 << 32) - 1)]
Unit = Annotated[int, Field(ge=0, lt=MAX_UNITS)]
MessageType = Annotated[int, Field(ge=0, le=(1 << 32) - 1)]


class Keys(BaseModel):
    """What all parts of a topology share: no other keys, no conversions, no changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
