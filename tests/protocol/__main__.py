"""The long run: python -m tests.protocol, or one scenario: python -m tests.protocol A,-,B --faults 1 --looks 1

Two processes, a scenario each. Prints a line for each scenario, and each kind of violation with its shortest trace.
"""

import argparse
import multiprocessing
import os
import sys
from dataclasses import dataclass

from tests.protocol.model import FAULTS, Model
from tests.protocol.search import Found, search, walk


@dataclass(frozen=True, slots=True)
class Scenario:
    """A script (tests/protocol/model.py says how to read it) and how many of each may happen."""

    script: str
    faults: int = 0
    repeats: int = 0
    looks: int = 0
    ticks: int = 0
    max_states: int = 10**9
    walk_seconds: float = 0
    seed: int = 1
    kinds: tuple[str, ...] = FAULTS

    @property
    def name(self) -> str:
        allowed = {"faults": self.faults, "repeats": self.repeats, "looks": self.looks, "ticks": self.ticks}
        return " ".join([self.script, *(f"{kind}={count}" for kind, count in allowed.items() if count)])

    def model(self, *, is_reduced: bool = True) -> Model:
        return Model(
            self.script,
            faults=self.faults,
            repeats=self.repeats,
            looks=self.looks,
            ticks=self.ticks,
            kinds=self.kinds,
            is_reduced=is_reduced,
        )

    def run(self) -> Found:
        if self.walk_seconds:
            return walk(self.model(), max_seconds=self.walk_seconds, seed=self.seed)
        return search(self.model(), max_states=self.max_states)


# Explored whole, without a fault: up to three uploads, with a repeated event, with a removal, with a pass of the reconciler.
WHOLE = (
    Scenario("A,B,A"),
    Scenario("A,B,C"),
    Scenario("A,B,x"),
    Scenario("A,x,B"),
    Scenario("A,B,d"),
    Scenario("A,d,B"),
    Scenario("acme:A,globex:A"),
    Scenario("A,B", repeats=1),
    Scenario("A,x", repeats=1),
    Scenario("A,d", repeats=1),
    Scenario("A", repeats=1, looks=1, ticks=1),
    Scenario("A,B", looks=1, ticks=1),
    Scenario("A,-", repeats=1, looks=1, ticks=1),
    Scenario("A,-,B"),
    Scenario("A,-,A", looks=1),
    Scenario("A,B,-"),
    Scenario("A,B,!"),
    Scenario("A,-,!"),
    Scenario("A,B,A", ticks=1),
    Scenario("A,B,A", repeats=1),
    Scenario("A,B,-,A"),
    Scenario("A,B,x", repeats=1),
    Scenario("A,B,A", looks=1, ticks=1, max_states=4_000_000),
)
# With one fault: whole, or at least a million states.
ONE_FAULT = tuple(
    Scenario(script, faults=1, max_states=1_200_000, **more)
    for script, more in (
        ("A", {"repeats": 1, "looks": 1, "ticks": 1}),
        ("A,B", {}),
        ("A,x", {}),
        ("A,d", {}),
        ("A,-", {}),
        ("A,B", {"repeats": 1}),
        ("A,B", {"looks": 1, "ticks": 1}),
        ("A,-", {"looks": 1, "ticks": 1}),
        ("A,-,B", {}),
        ("A,B,!", {}),
        ("A,-,!", {}),
        ("A,B,A", {}),
        ("A,B,C", {}),
        ("A,B,x", {}),
    )
)
WALKS = ("A,B,A,C", "A,A,x,B", "A,-,A,B", "A,B,!,C", "acme:A,globex:A,acme:B,globex:A")


def walks(seconds: float) -> tuple[Scenario, ...]:
    """Four uploads, two faults, and everything else that may happen; `seconds` in all."""
    return tuple(
        Scenario(script, faults=2, repeats=1, looks=2, ticks=1, walk_seconds=seconds / len(WALKS), seed=seed)
        for seed, script in enumerate(WALKS, 1)
    )


def run(scenario: Scenario) -> tuple[Scenario, Found]:
    return scenario, scenario.run()


def report(scenario: Scenario, found: Found) -> str:
    how = "walked" if scenario.walk_seconds else "whole" if found.is_whole else "NOT ALL SEEN"
    lines = [
        f"{scenario.name}: {found.states:,} states, {found.transitions:,} moves, {found.at_rest:,} at rest, "
        f"{found.seconds:.0f} s, {how}: {len(found.violations) or 'no'} violation{'s' * (len(found.violations) > 1)}"
    ]
    for kind, trace in sorted(found.violations.items()):
        lines += [f"  ## {kind}", *(f"  {number:3} {move}" for number, move in enumerate(trace, 1))]
    return "\n".join(lines)


def explore(scenarios: tuple[Scenario, ...], processes: int) -> int:
    """Runs them all and prints what they found; the number of violations."""
    violations = 0
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        for scenario, found in pool.imap_unordered(run, scenarios, chunksize=1):
            print(report(scenario, found), flush=True)
            violations += len(found.violations)
    return violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", nargs="?", help="one scenario instead of all")
    for kind in ("faults", "repeats", "looks", "ticks"):
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    parser.add_argument("--max-states", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--minutes", type=float, default=60, help="of random walks (default: %(default)s)")
    parser.add_argument("--walk", action="store_true", help="walk at random instead of searching")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args()
    if options.script:
        allowed = {kind: getattr(options, kind) for kind in ("faults", "repeats", "looks", "ticks")}
        seconds = options.minutes * 60 if options.walk else 0
        scenarios = (Scenario(options.script, max_states=options.max_states, walk_seconds=seconds, **allowed),)
    else:
        scenarios = (*WHOLE, *ONE_FAULT, *walks(options.minutes * 60 * options.processes))
    return min(explore(scenarios, options.processes), 1)


if __name__ == "__main__":
    sys.exit(main())
