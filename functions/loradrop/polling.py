"""When to poll again for something that takes seconds or many minutes."""

MIN_POLL_SECONDS = 3
# Of the time waited already: what took two minutes is noticed at most twelve seconds late.
POLL_GROWTH = 0.1


def next_poll_seconds(waited_seconds: float, deadline_seconds: float) -> int:
    """Whole seconds until the next poll: a tenth of the time waited, at least 3 s, and never past the deadline."""
    wanted = max(MIN_POLL_SECONDS, int(waited_seconds * POLL_GROWTH))
    return max(1, min(wanted, int(deadline_seconds - waited_seconds)))
