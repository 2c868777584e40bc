"""What the agent told of a device, in words for people, and what changed there meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from edgecompress.devices import DeviceFacts

__all__ = ["device_facts", "warnings", "drift"]

# Part numbers of the register MIDR_EL1 (Linux, arch/arm64/include/asm/cputype.h; Arm's manuals).
_ARM = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4b": "Cortex-A78C",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
}
_ARM_LTD = "0x41"
_CLOCK_DROP = 0.95
_HEATING_C = 5.0
_THROTTLED = 0.98
_LOW_BATTERY = 20


def device_facts(told: Mapping[str, Any]) -> DeviceFacts:
    """Facts in our words from those in the agent's."""
    maker, model = told.get("android_maker", ""), told.get("android_model", "")
    name = f"{maker} {model}".strip() or told.get("board") or told.get("host") or "?"
    version = told.get("android_version")
    kernel = f"{told.get('system', '')} {told.get('release', '')}".strip()
    own = f"Android {version}" if version else str(told.get("os_name", "")).strip('"')
    return DeviceFacts(
        name=name,
        cpu=_cpu(told),
        arch=told["arch"],
        isa=frozenset(str(told.get("isa", "")).split()),
        cores=int(told["cores"]) if told.get("cores") else None,
        ram_bytes=int(told["ram_bytes"]) if told.get("ram_bytes") else None,
        os=f"{own}, {kernel}" if own else kernel,
        clock_mhz=told.get("clock_mhz"),
        temperature_c=told.get("temperature_c"),
    )


def _cpu(told: Mapping[str, Any]) -> str:
    counts: Counter[str] = Counter()
    for each in told.get("parts", []):
        implementer, _, part = each.partition(" ")
        known = _ARM.get(part) if implementer == _ARM_LTD else None
        counts[known or f"ARM implementer {implementer} part {part}"] += 1
    cores = " + ".join(f"{count}x {name}" for name, count in counts.items())
    model = told.get("soc") or told.get("hardware") or told.get("cpu") or ""
    return f"{model} ({cores})" if model and cores else model or cores or told["arch"]


def warnings(told: Mapping[str, Any]) -> list[str]:
    """What of the device's state makes its times doubtful, a sentence each."""
    found = []
    limit, most = told.get("clock_limit_mhz"), told.get("clock_most_mhz")
    if limit and most and limit < _THROTTLED * most:
        found.append(f"the clock is limited to {limit:.0f} of {most:.0f} MHz")
    percent = told.get("battery_percent")
    if told.get("battery") == "Discharging" and percent is not None and percent < _LOW_BATTERY:
        found.append(f"the battery is at {percent:.0f} % and not being charged")
    return found


def drift(before: DeviceFacts, after: DeviceFacts) -> list[str]:
    """What changed on a device from before to after a measurement and may have slowed it down."""
    found = []
    if before.clock_mhz and after.clock_mhz and after.clock_mhz < _CLOCK_DROP * before.clock_mhz:
        found.append(
            f"the clock fell from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz: "
            "the device may throttle"
        )
    if before.temperature_c is not None and after.temperature_c is not None:
        risen = after.temperature_c - before.temperature_c
        if risen >= _HEATING_C:
            found.append(
                f"the device grew {risen:.0f} degrees warmer, to {after.temperature_c:.0f} C"
            )
    return found
