"""CloudWatch: the metrics that AWS makes without being asked, and alarms that follow them."""

import functools
import json
import time
from typing import Any

from ministack.services import cloudwatch, lambda_svc, sqs, stepfunctions

EXECUTION_METRICS = {
    "RUNNING": "ExecutionsStarted",
    "SUCCEEDED": "ExecutionsSucceeded",
    "FAILED": "ExecutionsFailed",
    "TIMED_OUT": "ExecutionsTimedOut",
    "ABORTED": "ExecutionsAborted",
}


def make_metrics_of_embedded_logs() -> None:
    """CloudWatch makes metrics of what Powertools prints in the embedded metric format; MiniStack keeps it as text."""
    emit = lambda_svc._emit_lambda_logs

    @functools.wraps(emit)
    def emit_with_metrics(function: Any, request_id: str, log: str, *args: Any, **kwargs: Any) -> None:
        emit(function, request_id, log, *args, **kwargs)
        for line in (log or "").splitlines():
            if '"_aws"' in line:
                _record_embedded(line)
        cloudwatch._evaluate_all_alarms()

    lambda_svc._emit_lambda_logs = emit_with_metrics


def _record_embedded(line: str) -> None:
    try:
        record = json.loads(line)
        directives = record["_aws"]["CloudWatchMetrics"]
    except (ValueError, KeyError, TypeError):
        return  # a line that only looks like it
    for directive in directives:
        for names in directive.get("Dimensions") or [[]]:
            dimensions = {name: str(record[name]) for name in names}
            for metric in directive["Metrics"]:
                values = record[metric["Name"]]
                for value in values if isinstance(values, list) else [values]:
                    unit = metric.get("Unit", "None")
                    cloudwatch.record_metric(directive["Namespace"], metric["Name"], value, unit, dimensions)


def count_executions() -> None:
    """Step Functions counts executions by how they end; MiniStack does not."""
    emit = stepfunctions._emit_execution_status_event

    @functools.wraps(emit)
    def emit_and_count(execution: dict[str, Any]) -> None:
        emit(execution)
        dimensions = {"StateMachineArn": execution["stateMachineArn"]}
        cloudwatch.record_metric("AWS/States", EXECUTION_METRICS[execution["status"]], 1, "Count", dimensions)
        cloudwatch._evaluate_all_alarms()

    stepfunctions._emit_execution_status_event = emit_and_count


def evaluate_alarms_by_their_own_metric() -> None:
    """An alarm follows the metric of its dimensions, and TreatMissingData says what silence means; in MiniStack an alarm takes in
    the metrics of all dimensions, and never comes back from ALARM. One that is read is evaluated first."""
    describe = cloudwatch._describe_alarms

    @functools.wraps(describe)
    def describe_evaluated(*args: Any, **kwargs: Any) -> Any:
        _measure_queues()
        cloudwatch._evaluate_all_alarms()
        return describe(*args, **kwargs)

    cloudwatch._describe_alarms = describe_evaluated
    cloudwatch._evaluate_alarm = _evaluate_alarm


def _evaluate_alarm(alarm: dict[str, Any]) -> None:
    if not alarm.get("MetricName") or not alarm.get("Namespace"):
        return  # one of several metrics
    listed = alarm.get("Dimensions") or []
    dimensions = listed if isinstance(listed, dict) else cloudwatch._dims_from_list(listed)
    points = cloudwatch._metrics.get((alarm["Namespace"], alarm["MetricName"], cloudwatch._dims_key(dimensions))) or []
    since = time.time() - alarm.get("Period", 60) * alarm.get("EvaluationPeriods", 1)
    recent = [point for point in points if point["Timestamp"] >= since]
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic", "Average")
    value = cloudwatch._stat_value(cloudwatch._calc_stats(recent), statistic, recent) if recent else None
    threshold, operator = float(alarm.get("Threshold", 0)), alarm.get("ComparisonOperator", "")
    before = alarm["StateValue"]
    if value is None:
        missing = {"notBreaching": "OK", "breaching": "ALARM", "ignore": before}
        after = missing.get(alarm.get("TreatMissingData", "missing"), "INSUFFICIENT_DATA")
    else:
        breaches = {
            "GreaterThanThreshold": value > threshold,
            "GreaterThanOrEqualToThreshold": value >= threshold,
            "LessThanThreshold": value < threshold,
            "LessThanOrEqualToThreshold": value <= threshold,
        }
        after = "ALARM" if breaches.get(operator, False) else "OK"
    if after == before:
        return
    reason = f"Threshold Crossed: {statistic} {value} {operator} {threshold}"
    alarm |= {"StateValue": after, "StateReason": reason, "StateUpdatedTimestamp": int(time.time())}
    cloudwatch._record_history(alarm["AlarmName"], before, after, reason)
    cloudwatch._dispatch_alarm_actions(alarm, before, after, reason)
    cloudwatch._evaluate_parent_alarms(alarm)


def _measure_queues() -> None:
    """What SQS reports every minute."""
    for queue in list(sqs._queues.values()):
        name = queue["name"] if "name" in queue else str(queue.get("url", "")).rpartition("/")[2]
        visible = len(queue["messages"])
        cloudwatch.record_metric("AWS/SQS", "ApproximateNumberOfMessagesVisible", visible, "Count", {"QueueName": name})
