"""When to poll again for something that takes seconds or many minutes."""

from collections.abc import Iterator

MIN_POLL_SECONDS = 3
# Of the time waited already: what took two minutes is noticed at most twelve seconds late.
POLL_GROWTH = 0.1
# Within one Lambda: what took ten seconds is noticed at most half a second late.
FIRST_WATCH_SECONDS = 0.25
WATCH_GROWTH = 0.05


def next_poll_seconds(waited_seconds: float, deadline_seconds: float) -> int:
    """Whole seconds until the next poll: a tenth of the time waited, at least 3 s, and never past the deadline."""
    wanted = max(MIN_POLL_SECONDS, int(waited_seconds * POLL_GROWTH))
    return max(1, min(wanted, int(deadline_seconds - waited_seconds)))


def watch(waited_seconds: float, until_seconds: float) -> Iterator[float]:
    """The seconds between the polls of one Lambda, which ends once `until_seconds` have been waited in all."""
    while waited_seconds < until_seconds:
        seconds = max(FIRST_WATCH_SECONDS, waited_seconds * WATCH_GROWTH)
        yield seconds
        waited_seconds += seconds
