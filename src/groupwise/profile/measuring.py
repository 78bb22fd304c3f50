"""What other processes did while something was timed, and whether its times can be trusted."""

from __future__ import annotations

import os
import pathlib
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

# Above this fraction of the processors' time, what others took may have changed the times by more than they scatter.
MOST = 0.1
# Linux counts a processor's time in ticks, and gives a whole one to whoever runs at its end. What the counts are off by
# stays within a few ticks, which matter where little time passed.
_TICKS_OFF = 3
_STAT = pathlib.Path("/proc/stat")
# The columns of a line of /proc/stat in which a processor waits: `idle` and `iowait`. Of the others, `guest` and
# `guest_nice` are part of `user` and `nice`.
_IDLE, _COUNTED = (3, 4), 8


@dataclass(frozen=True)
class Interference:
    """What other processes, the system's own work and other virtual machines took while something was timed.

    - `fraction`: of the time of all processors that this process may use; None where the system does not tell
    - `busy`: whether that is too much for the times to be trusted
    """

    fraction: float | None = None
    busy: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return asdict(self)


UNKNOWN = Interference()


class Meter:
    """Watches the processors from when it is made: make one before what you time, and read it right after.

    It reads Linux's /proc/stat. On other systems, and in sandboxes that hide it, nothing is known of other processes.
    """

    def __init__(self) -> None:
        self._before = reading()

    def read(self) -> Interference:
        """Returns what others took since the meter was made."""
        after = reading()
        if self._before is None or after is None or self._before.processors != after.processors:
            return UNKNOWN
        return judged(self._before, after)


class Reading(NamedTuple):
    """Seconds since some moment of the past.

    - `total`, `busy`: of all processors that the process may use; `own`: of this process, all threads together
    - `tick`: the unit in which the processors count; `processors`: which they are
    """

    total: float
    busy: float
    own: float
    tick: float
    processors: frozenset[int]


def judged(before: Reading, after: Reading) -> Interference:
    """Returns what others took between two readings."""
    total = after.total - before.total
    if total <= 0:
        return UNKNOWN
    others = max(0.0, (after.busy - before.busy) - (after.own - before.own))
    sure = others - _TICKS_OFF * after.tick
    return Interference(min(1.0, others / total), sure > MOST * total)


def reading() -> Reading | None:
    """Reads the counts of the processors and of this process; None where the system does not tell."""
    try:
        processors = frozenset(os.sched_getaffinity(0))
        tick = 1 / os.sysconf("SC_CLK_TCK")
        lines = _STAT.read_text().splitlines()
        own = time.process_time()
    except (AttributeError, OSError, ValueError):
        return None
    wanted = {f"cpu{number}" for number in processors}
    counts = [[int(count) for count in line.split()[1:]] for line in lines if line.split(" ", 1)[0] in wanted]
    if len(counts) != len(processors):
        return None
    total = sum(sum(one[:_COUNTED]) for one in counts)
    idle = sum(one[place] for one in counts for place in _IDLE)
    return Reading(total * tick, (total - idle) * tick, own, tick, processors)
