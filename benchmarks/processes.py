"""CPU time and memory of processes and all they have started, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[int, int, int] | None:
    """Parent, own ticks, ticks of children that ended; None when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name may hold spaces and brackets: what follows the last bracket is regular.
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])


def tree_cpu_seconds(root: int, leave_out: Iterable[int] = ()) -> float:
    """User and system seconds of a process and its descendants, but not of those counted elsewhere."""
    children: dict[int, list[int]] = {}
    stats: dict[int, tuple[int, int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            stats[int(name)] = stat
            children.setdefault(stat[0], []).append(int(name))
    left_out = set(leave_out) - {root}
    ticks, todo = 0, [root]
    while todo:
        pid = todo.pop()
        if pid in stats:
            ticks += stats[pid][1] + stats[pid][2]
        todo += [child for child in children.get(pid, []) if child not in left_out]
    return ticks / _TICKS


def resident_megabytes(pid: int) -> float:
    """Resident memory of one process."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@dataclass
class CpuMeter:
    """CPU seconds of named process trees between two moments."""

    roots: Mapping[str, int]

    def start(self) -> None:
        """Takes the first reading."""
        self._before = self._read()

    def stop(self) -> dict[str, float]:
        """Seconds since `start`, by name."""
        after = self._read()
        return {name: after[name] - self._before[name] for name in after}

    def _read(self) -> dict[str, float]:
        pids = list(self.roots.values())
        return {name: tree_cpu_seconds(pid, pids) for name, pid in self.roots.items()}
