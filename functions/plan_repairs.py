"""PlanRepairs: compare bucket, registry, endpoint and executions, and say which adapters need which repair."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aws import components, fleet
from aws.runtime import logger, metrics, setting
from loradrop.lifecycle import AdapterState, Outcome, early_standbys
from loradrop.names import AdapterNameInvalidError, adapter_name, nameless_adapter
from loradrop.reconcile import Adapter, Fleet, Plan, Repair, Scope, Wanted, is_history_needed, is_orphan, wanted

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

endpoint = setting("ENDPOINT_NAME")
base = setting("BASE_COMPONENT_NAME")
stack = setting("STACK_ID")

# Adapters of one plan. A longer one goes on where it ended: the machine plans again behind it.
MAX_REPAIRS = 100
# Kept for writing the answer, where the whole fleet takes longer than the function may.
RESERVE_MILLISECONDS = 30_000


@metrics.log_metrics
@logger.inject_lambda_context
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """{scope: the execution's input, after: adapter} → {repairs, examined, counts, dry_run, next?}.

    Raises Throttled.
    """
    scope = _scope(event["scope"])
    if scope.adapter is not None:
        adapter, of_adapter = fleet.look_at(scope.adapter)
        plan = Plan(MAX_REPAIRS, examined=1)
        plan.add(scope.adapter, wanted(adapter, of_adapter, is_patient=not scope.is_by_hand), removed_by=scope.order)
        # Not where its own end is the reason: it would be tried again and again, and before those who wait longer.
        if plan.retries and scope.is_by_hand:
            plan.keep_retries(standing=_standing(_statuses(components.on_endpoint(endpoint)), ()))
        last = None
    else:
        plan, last = _whole_plan(scope, event.get("after") or "", context)
    logger.info("repairs planned", examined=plan.examined, counts=plan.counts, dry_run=scope.dry_run)
    for repair, count in plan.counts.items() if not scope.dry_run else ():
        metrics.add_metric(name=f"Repair{repair.capitalize()}", unit="Count", value=count)
    is_base_in_service = components.is_in_service(base)
    metrics.add_metric(name="BaseInService", unit="Count", value=int(is_base_in_service))
    answer = {
        "repairs": plan.repairs,
        "examined": plan.examined,
        "counts": plan.counts,
        "dry_run": scope.dry_run,
        "base_in_service": is_base_in_service,
    }
    return answer | ({"next": last} if last else {})


def _scope(given: dict[str, Any]) -> Scope:
    """What an event, the schedule or a person asks to reconcile. Raises ValueError on what is none of them."""
    kind, detail = given.get("detail-type"), given.get("detail", {})
    if kind == "Object Deleted":
        return Scope(adapter=_adapter_of(detail["object"]["key"]), order=detail["object"].get("sequencer"))
    if kind == "Step Functions Execution Status Change":
        started_by = fleet.input_of(detail["executionArn"])
        if "heal" in started_by:
            return Scope(adapter=started_by["heal"]["upload"]["adapter"])
        return Scope(adapter=_adapter_of(started_by["detail"]["object"]["key"]))
    if kind is not None and kind != "Scheduled Event":
        raise ValueError(f"ReconcileFleet knows no event of the type {kind!r}.")
    return Scope(adapter=given.get("adapter"), dry_run=bool(given.get("dry_run")), is_by_hand=kind is None)


def _adapter_of(key: str) -> str:
    try:
        return adapter_name(key)
    except AdapterNameInvalidError:
        return nameless_adapter(key)


def _whole_plan(scope: Scope, after: str, context: "LambdaContext") -> tuple[Plan, str | None]:
    states, unreported = fleet.all_states(), fleet.all_open()
    current = fleet.all_current()
    summaries = list(components.on_endpoint(endpoint))
    statuses = _statuses(summaries)
    now = fleet.fleet(statuses, fleet.all_running())
    plan = Plan(MAX_REPAIRS)
    names = [name for name in sorted({*states, *unreported, *current}) if name > after]

    def found(name: str) -> tuple[Wanted, ...]:
        adapter = Adapter(
            name, states.get(name, AdapterState()), current.get(name), (), tuple(unreported.get(name, ()))
        )
        if is_history_needed(adapter, now):
            adapter = replace(adapter, history=tuple(fleet.registry.uploads(name)))
        return wanted(adapter, now, is_patient=not scope.is_by_hand)

    for name in names:
        plan.examined += 1
        plan.add(name, found(name))
        is_late = context.get_remaining_time_in_millis() < RESERVE_MILLISECONDS
        if (plan.is_full or is_late) and name != names[-1]:
            return plan, name
    for name in sorted(states):  # who waits among those of earlier pages
        newest = states[name].newest
        if name <= after and newest is not None and newest.outcome is Outcome.WAITING:
            plan.add(name, tuple(one for one in found(name) if one.repair is Repair.RETRY))
    metrics.add_metric(name="Components", unit="Count", value=len(statuses))
    live = sum(1 for state in states.values() if state.live is not None)
    metrics.add_metric(name="LiveAdapters", unit="Count", value=live)
    metrics.add_metric(name="WaitingForRoom", unit="Count", value=len(plan.retries))
    may_go = early_standbys(states.items(), endpoint, now.now)
    plan.keep_retries(standing=_standing(statuses, (name for _, name in may_go)))
    _add_orphans(plan, states, summaries, now)
    return plan, None


def _statuses(summaries: Iterable[Any]) -> dict[str, str]:
    return {one["InferenceComponentName"]: one.get("InferenceComponentStatus", "Creating") for one in summaries}


def _standing(statuses: Mapping[str, str], may_go: Iterable[str]) -> int:
    """How many components the endpoint has, as it counted when it was full, without those that a create may delete."""
    return len(statuses.keys() - set(may_go))


def _add_orphans(plan: Plan, states: dict[str, AdapterState], summaries: list[Any], now: Fleet) -> None:
    """Components with this stack's tag that no adapter knows. Nothing without the tag is touched."""
    known = {name for state in states.values() for name in state.components} | {base}
    for one in summaries:
        name = one["InferenceComponentName"]
        if plan.is_full:
            return
        if is_orphan(name, known, age_seconds=now.now - one["CreationTime"].timestamp()) and (
            components.stack_of(one["InferenceComponentArn"]) == stack
        ):
            plan.add("", (Wanted(Repair.ORPHAN, "no adapter knows this component of the stack's", component=name),))
