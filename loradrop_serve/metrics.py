"""What the door counts of each adapter, in Prometheus' text form (version 0.0.4)."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# A name that the registry does not know is anybody's invention: all of them are counted as one.
UNKNOWN = ""

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """It may be shared by threads. A label's values are adapters that the registry knows, so their number is bounded by the fleet's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[_Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._seconds: dict[_Labels, list[float]] = {}  # one count for each bucket, the sum, the count
        self.in_flight = 0
        self.in_flight_of: Counter[str] = Counter()  # by adapter, whether there is such a one or not

    def answered(self, model: str, path: str, status: int, seconds: float) -> None:
        """`status` is 499 where the client went away."""
        with self._lock:
            self._counters["requests"][("model", model), ("path", path), ("status", str(status))] += 1
            if status >= 400:
                self._counters["errors"][("model", model), ("status", str(status))] += 1
            spread = self._seconds.setdefault((("model", model),), [0.0] * (len(BUCKETS_SECONDS) + 2))
            for place, most in enumerate(BUCKETS_SECONDS):
                spread[place] += seconds <= most
            spread[-2] += seconds
            spread[-1] += 1

    def used(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        with self._lock:
            counter = self._counters["tokens"]
            counter[("model", model), ("kind", "prompt")] += prompt_tokens
            counter[("model", model), ("kind", "completion")] += completion_tokens

    def text(self) -> str:
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for name, what in (
            ("requests", "Requests that were answered; 499 where the client went away."),
            ("errors", "Requests that were answered with a status from 400."),
            ("tokens", "Tokens, as the engine counts them; of a stream without usage, its pieces."),
        ):
            yield f"# HELP loradrop_door_{name}_total {what}"
            yield f"# TYPE loradrop_door_{name}_total counter"
            for labels, value in self._counters[name].items():
                yield f"loradrop_door_{name}_total{{{_shown(labels)}}} {value:g}"
        yield "# HELP loradrop_door_seconds Time from the request to the end of its answer."
        yield "# TYPE loradrop_door_seconds histogram"
        for labels, spread in self._seconds.items():
            shown = _shown(labels)
            for most, count in zip((*map(str, BUCKETS_SECONDS), "+Inf"), (*spread[:-2], spread[-1]), strict=True):
                yield f'loradrop_door_seconds_bucket{{{shown},le="{most}"}} {count:g}'
            yield f"loradrop_door_seconds_sum{{{shown}}} {spread[-2]:.6f}"
            yield f"loradrop_door_seconds_count{{{shown}}} {spread[-1]:g}"
        yield "# HELP loradrop_door_in_flight Requests that are being answered."
        yield "# TYPE loradrop_door_in_flight gauge"
        yield f"loradrop_door_in_flight {self.in_flight}"


def _shown(labels: _Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
