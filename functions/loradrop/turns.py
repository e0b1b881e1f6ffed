"""Turns: creates on one endpoint begin one after another, at most so many a second, in the order in which they came.

Everybody who wants to create takes a ticket, once. When a ticket's turn comes is computed from the line alone: so a line
that is moved back, or that goes faster or slower, moves everybody in it, and nobody loses a place. Where nobody waits,
the turn is now. An attempt that dies leaves its slot unused, and nothing else.

Pure: no AWS, no clock but what it is given. Times are Unix seconds; aws/turns.py reads and writes.
"""

import math
from dataclasses import dataclass, replace

# Creates a second. AWS publishes no rate: where it allows less than even this, the attempt's own limit ends it.
LEAST_RATE = 0.05
# A throttle slows the line to this part of its rate; time without throttles makes it faster again.
SLOWER, FASTER = 0.9, 1.05
SECONDS_UNTIL_FASTER = 10.0
# Throttles of one moment are one throttle.
MOMENT_SECONDS = 2.0
# Step Functions waits whole seconds. What is shorter, and the last part of what is longer, the Lambda sleeps: a state
# transition costs as much as seven seconds of it.
MAX_SLEEP_SECONDS = 1.5
# In a slow line, who waits looks at most this often.
LOOK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Line:
    """The line for one endpoint: ticket n's turn is `(n - first) / rate` seconds after `first_at`.

    `next_ticket` is the next to be taken; it is counted up, whatever the revision. `changed_at` is when the rate last changed, `slowed_at` when it fell.
    """

    revision: int = 0
    next_ticket: int = 0
    first: int = 0
    first_at: float = 0.0
    rate: float = 0.0
    changed_at: float = 0.0
    slowed_at: float = 0.0


def turn_at(line: Line, ticket: int) -> float:
    return line.first_at + (ticket - line.first) / line.rate


def before(line: Line, ticket: int, now: float) -> int:
    """How many tickets wait for their turn before this one."""
    return max(0, ticket - _next_up(line, now)[0])


def waiting(line: Line, now: float) -> int:
    """How many tickets still wait for their turn."""
    return line.next_ticket - _next_up(line, now)[0] if line.rate else 0


def seconds_to_wait(line: Line, ticket: int, now: float, most: float) -> int:
    """For the state machine, before it looks again; 0: what is left is short enough to be slept through.

    A line that was slowed down may go faster again: so who waits looks when the turn would have come at `most`.
    """
    seconds = turn_at(line, ticket) - now
    if seconds <= MAX_SLEEP_SECONDS:
        return 0
    soonest = max(before(line, ticket, now) / most, LOOK_SECONDS)
    return max(1, int(min(seconds - MAX_SLEEP_SECONDS / 2, soonest)))


def taken(line: Line, ticket: int, now: float, most: float) -> Line:
    """The line when the ticket was just taken: where nobody waits, its turn is now. `most` is the highest rate."""
    line = refreshed(line, now, most)
    # Time that nobody used is not saved up.
    return line if turn_at(line, ticket) >= now else replace(line, first=ticket, first_at=now)


def refreshed(line: Line, now: float, most: float) -> Line:
    """The line at the rate that it has by now: faster if there was no throttle for a while, never above `most`."""
    if line.rate <= 0:
        return replace(line, first=line.next_ticket, first_at=now, rate=most, changed_at=now)
    if line.rate > most:
        return _at_rate(line, now, most)
    if line.rate < most and now - line.changed_at >= SECONDS_UNTIL_FASTER:
        return _at_rate(line, now, min(most, line.rate * FASTER))
    return line


def throttled(line: Line, now: float) -> tuple[Line, int]:
    """AWS refused a create: the line is moved back for everybody, and goes slower. The refused one is first in it again."""
    ticket, at = _next_up(line, now)
    if now - line.slowed_at >= MOMENT_SECONDS:
        rate = max(LEAST_RATE, line.rate * SLOWER)
        line = replace(line, rate=rate, changed_at=now, slowed_at=now)
        at = max(at, now + 1 / rate)
    return replace(line, first=ticket - 1, first_at=at), ticket - 1


def _at_rate(line: Line, now: float, rate: float) -> Line:
    ticket, at = _next_up(line, now)
    return replace(line, first=ticket, first_at=at, rate=rate, changed_at=now)


def _next_up(line: Line, now: float) -> tuple[int, float]:
    """The first ticket whose turn is still to come, and when."""
    passed = math.floor((now - line.first_at) * line.rate) + 1 if now >= line.first_at else 0
    ticket = min(line.first + passed, line.next_ticket)
    return ticket, max(now, turn_at(line, ticket))
