"""Exploring a model: all of its worlds, breadth first, or random walks; and the shortest way to what must not be."""

import random
import time
from array import array
from collections import deque
from dataclasses import dataclass, field

from tests.protocol.model import Model


@dataclass(slots=True)
class Found:
    """What a search has seen. `violations` has the moves of the shortest trace to each kind that was found."""

    states: int = 0
    transitions: int = 0
    at_rest: int = 0
    worlds_at_rest: set[int] = field(default_factory=set)
    seconds: float = 0.0
    is_whole: bool = True
    violations: dict[str, list[str]] = field(default_factory=dict)


def search(model: Model, *, max_states: int = 10**9, max_seconds: float = 10**9, stop_at_first: bool = False) -> Found:
    """Breadth first, so that the first trace of a violation is a shortest one.

    A world that was seen is remembered by its 64-bit hash alone, with its parent and the number of the move: a million take
    some 100 MB. That two worlds share a hash among ten million has a chance of one in 300,000.
    """
    begun = time.monotonic()
    found = Found()
    start = model.initial()
    parents, numbers = array("q", [-1]), array("H", [0])
    seen = {hash(start): 0}
    queue = deque([(0, start)])

    def note(kinds: tuple[str, ...], index: int, number: int | None = None) -> None:
        for kind in kinds:
            if kind not in found.violations:
                found.violations[kind] = _trace(model, parents, numbers, index, number)

    while queue:
        if (stop_at_first and found.violations) or time.monotonic() - begun > max_seconds:
            found.is_whole = False
            break
        index, world = queue.popleft()
        moves, is_at_rest = model.moves(world)
        found.transitions += len(moves)
        if is_at_rest:
            found.at_rest += 1
            found.worlds_at_rest.add(hash(world))
            note(model.violations_at_rest(world), index)
        for number, one in enumerate(moves):
            note(one.violations, index, number)
            key = hash(one.after)
            if key in seen:
                continue
            if len(seen) >= max_states:
                found.is_whole = False
                continue
            seen[key] = len(parents)
            queue.append((len(parents), one.after))
            parents.append(index)
            numbers.append(number)
            note(model.violations(one.after), len(parents) - 1)
    found.states, found.seconds = len(seen), time.monotonic() - begun
    return found


def _trace(model: Model, parents: "array[int]", numbers: "array[int]", index: int, number: int | None) -> list[str]:
    path = [] if number is None else [number]
    while index:
        path.append(numbers[index])
        index = parents[index]
    return replayed(model, path[::-1])


def replayed(model: Model, path: list[int]) -> list[str]:
    world, lines = model.initial(), []
    for number in path:
        one = model.moves(world)[0][number]
        lines.append(model.shown(one.label) + (f"   [{one.fault}]" if one.fault else ""))
        world = one.after
    return lines


def walk(model: Model, *, max_seconds: float, seed: int = 1, fault_chance: float = 0.06) -> Found:
    """Random walks to rest, one after the other: for more uploads than a search can hold. Traces are not the shortest."""
    begun, chance, found = time.monotonic(), random.Random(seed), Found(is_whole=False)
    seen: set[int] = set()
    while time.monotonic() - begun < max_seconds:
        world, path, here = model.initial(), [], set()
        while True:
            here.add(hash(world))
            moves, is_at_rest = model.moves(world)
            found.transitions += 1
            fresh = [n for n, one in enumerate(moves) if one.fault is None and hash(one.after) not in here]
            faults = [n for n, one in enumerate(moves) if one.fault is not None]
            if not fresh and not (faults and chance.random() < 0.5):
                if is_at_rest:
                    found.at_rest += 1
                    _note(model, found, model.violations_at_rest(world), path)
                break
            number = chance.choice(faults if faults and (not fresh or chance.random() < fault_chance) else fresh)
            path.append(number)
            _note(model, found, moves[number].violations, path)
            world = moves[number].after
            _note(model, found, model.violations(world), path)
            seen.add(hash(world))
            if len(path) > 1_000:
                _note(model, found, ("a walk of a thousand moves that does not come to rest",), path)
                break
    found.states, found.seconds = len(seen), time.monotonic() - begun
    return found


def _note(model: Model, found: Found, kinds: tuple[str, ...], path: list[int]) -> None:
    for kind in kinds:
        if kind not in found.violations or len(path) < len(found.violations[kind]):
            found.violations[kind] = replayed(model, path)
