"""`loradrop cost`: what a month of a stack cost, and for whom.

The endpoint costs its price for every hour, whoever asks. Its hours are divided in two: the time in which requests were
answered, by each adapter's own; and the idle rest, among the adapters that were live, in equal parts. What SageMaker's
metrics do not say, tokens above all, is not guessed.
"""

import argparse
import calendar
import csv
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from loradrop.lifecycle import AdapterState, Outcome, UploadRecord
from loradrop.names import UPLOAD_PREFIX, UPLOAD_SUFFIX
from loradrop_client import explaining

from .capacity import DEFAULT_HOURLY_PRICE, DEFAULT_INSTANCE, HOURS_PER_MONTH
from .connection import THREADS, Connection
from .exit_codes import ExitCode
from .terminal import CommandError, print_message, safe

# us-east-1, as AWS publishes them, 2026-11: S3 Standard for a GB and month; one deployment's transitions and Lambda time
# (docs/deploying.md).
STORAGE_DOLLARS = 0.023
DEPLOYMENT_DOLLARS = 0.0023
_DAY_SECONDS = 86_400
_QUERIES = 500  # of GetMetricData, in a call
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one adapter in the time that is looked at. `busy_seconds` is the sum of its requests' time in the model."""

    adapter: str
    is_live: bool
    requests: int
    busy_seconds: float
    deployments: int
    stored_bytes: int
    last_request: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars. `alone` is what an endpoint of its own would have cost."""

    adapter: str
    tenant: str
    requests: int
    busy: float
    idle: float
    storage: float
    deployments: float
    total: float
    alone: float


def costs(usages: Iterable[Usage], *, hourly_price: float, instances: int, seconds: float) -> list[Cost]:
    """The dearest first. Requests that were answered at once share their time: busy time is at most all of it."""
    alone_dollars = hourly_price * seconds / 3600
    endpoint_dollars, endpoint_seconds = alone_dollars * instances, seconds * instances
    usages = list(usages)
    busy = sum(one.busy_seconds for one in usages)
    busy_dollars = endpoint_dollars * min(1.0, busy / endpoint_seconds) if endpoint_seconds else 0.0
    live = sum(one.is_live for one in usages)
    idle_dollars = (endpoint_dollars - busy_dollars) / live if live else 0.0
    found = []
    for one in usages:
        own = busy_dollars * one.busy_seconds / busy if busy else 0.0
        idle = idle_dollars if one.is_live else 0.0
        storage = one.stored_bytes / 1e9 * STORAGE_DOLLARS * seconds / (HOURS_PER_MONTH * 3600)
        deployments = one.deployments * DEPLOYMENT_DOLLARS
        total = own + idle + storage + deployments
        alone = alone_dollars if one.is_live or one.requests else 0.0
        tenant = one.adapter.partition("/")[0]
        found.append(Cost(one.adapter, tenant, one.requests, own, idle, storage, deployments, total, alone))
    return sorted(found, key=lambda one: (-one.total, one.adapter))


def cost(arguments: argparse.Namespace) -> int:
    connection = Connection.of(arguments)
    begin, end = month(arguments.month, datetime.now(UTC))
    instances, price, made_at = _endpoint(connection, arguments.hourly_price)
    usages, missing = _usages(connection, begin, end)
    begin = min(max(begin, made_at), end)  # the hours are those in which the endpoint stood
    seconds = (end - begin).total_seconds()
    found = costs(usages, hourly_price=price, instances=instances, seconds=seconds)
    if not any(one.is_live for one in usages):
        missing.append("Idle time: nothing is live, so nobody is charged for the endpoint's hours without requests.")
    document = {
        "stack": connection.stack.name,
        "from": begin.isoformat(),
        "to": end.isoformat(),
        "instances": instances,
        "hourly_price": price,
        "total": sum(one.total for one in found),
        "alone": sum(one.alone for one in found),
        "missing": missing,
        "tenants": _by_tenant(found),
        "adapters": [asdict(one) for one in found],
    }
    if arguments.json:
        print(json.dumps(document, indent=2))
    elif arguments.csv:
        table = csv.DictWriter(sys.stdout, [one.name for one in fields(Cost)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(one) for one in found)
    else:
        print_message("\n".join(_lines(document, found)))
    return ExitCode.DONE


def month(given: str | None, now: datetime) -> tuple[datetime, datetime]:
    """From its first instant to its last, or to now. Raises CommandError."""
    if given is None:
        return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0), now
    match = _MONTH.fullmatch(given)
    if match is None:
        raise CommandError(f"{given!r} is no month; write it as {now:%Y-%m}.")
    begin = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    if begin >= now:
        raise CommandError(f"{given} is yet to come.")
    return begin, min(begin + timedelta(days=calendar.monthrange(begin.year, begin.month)[1]), now)


def _endpoint(connection: Connection, price: float | None) -> tuple[int, float, datetime]:
    """(instances now, price of one an hour, since when it stands). Raises CommandError where the price is not known."""
    sagemaker, name = connection.client("sagemaker"), connection.stack.output("EndpointName")
    with explaining("read the endpoint"):
        found = sagemaker.describe_endpoint(EndpointName=name)
    instances = sum(one.get("CurrentInstanceCount", 1) for one in found.get("ProductionVariants", [])) or 1
    kind = connection.stack.parameters.get("InstanceType")
    is_known = kind == DEFAULT_INSTANCE and not connection.stack.parameters.get("ExistingEndpointName")
    if price is None and not is_known:
        raise CommandError(f"What does one instance of {name} cost an hour? Add --hourly-price.")
    return instances, DEFAULT_HOURLY_PRICE if price is None else price, found["CreationTime"].astimezone(UTC)


def _usages(connection: Connection, begin: datetime, end: datetime) -> tuple[list[Usage], list[str]]:
    """Of every adapter; and what the figures lack, in sentences."""
    with explaining("list the adapters of the registry"):
        states = dict(connection.registry.adapters())
        with ThreadPoolExecutor(THREADS) as threads:
            histories = dict(
                zip(states, threads.map(lambda name: list(connection.registry.uploads(name)), states), strict=True)
            )
    owners = {component: name for name, state in states.items() for component in _components(state, histories[name])}
    with explaining("read SageMaker's metrics"):
        requests, busy, last = _metrics(connection.client("cloudwatch"), owners, begin, end)
    with explaining("list what is stored"):
        stored = _stored(connection)
    missing = ["Tokens: SageMaker has no metric of them by component, so requests are weighed by their time alone."]
    if owners and not any(requests.values()):
        missing.append("Requests: CloudWatch has none for these components in this time. Was nobody asking?")
    return [
        Usage(
            name,
            state.live is not None,
            int(requests[name]),
            busy[name],
            sum(1 for record in histories[name] if _is_in(record, begin, end)),
            stored[name],
            last.get(name),
        )
        for name, state in states.items()
    ], missing


def _components(state: AdapterState, history: list[UploadRecord]) -> set[str]:
    """All that were ever the adapter's."""
    return {*state.components, *(record.component for record in history if record.component)}


def _is_in(record: UploadRecord, begin: datetime, end: datetime) -> bool:
    at = record.figures.get("finished_at")
    is_deployment = record.outcome in (Outcome.DEPLOYED, Outcome.FAILED)
    return is_deployment and isinstance(at, str) and begin <= datetime.fromisoformat(at) < end


def _metrics(
    cloudwatch: Any, owners: Mapping[str, str], begin: datetime, end: datetime
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """By adapter: requests, their seconds in the model, and the last day with a request."""
    requests, busy, last = defaultdict[str, float](float), defaultdict[str, float](float), dict[str, str]()
    wanted = [(component, metric) for component in sorted(owners) for metric in ("Invocations", "ModelLatency")]
    for batch in (wanted[first : first + _QUERIES] for first in range(0, len(wanted), _QUERIES)):
        queries = [
            {
                "Id": f"m{number}",
                "MetricStat": {
                    "Metric": {
                        "Namespace": "AWS/SageMaker",
                        "MetricName": metric,
                        "Dimensions": [{"Name": "InferenceComponentName", "Value": component}],
                    },
                    "Period": _DAY_SECONDS,
                    "Stat": "Sum",
                },
            }
            for number, (component, metric) in enumerate(batch)
        ]
        pages = cloudwatch.get_paginator("get_metric_data").paginate(
            MetricDataQueries=queries, StartTime=begin, EndTime=end
        )
        for result in (one for page in pages for one in page["MetricDataResults"]):
            component, metric = batch[int(result["Id"][1:])]
            name, total = owners[component], sum(result["Values"])
            if metric == "ModelLatency":
                busy[name] += total / 1e6
                continue
            requests[name] += total
            days = [at for at, value in zip(result["Timestamps"], result["Values"], strict=True) if value]
            if days:
                last[name] = max(max(days).date().isoformat(), last.get(name, ""))
    return requests, busy, last


def _stored(connection: Connection) -> dict[str, int]:
    """Bytes by adapter, of all versions: tarballs as they were dropped, releases, and what the smoke test wrote."""
    stored: dict[str, int] = defaultdict(int)
    for output in ("UploadBucketName", "ReleaseBucketName"):
        pages = connection.s3.get_paginator("list_object_versions").paginate(Bucket=connection.stack.output(output))
        for version in (one for page in pages for one in page.get("Versions", [])):
            key = version["Key"]
            if key.startswith(UPLOAD_PREFIX):
                stored[key.removeprefix(UPLOAD_PREFIX).removesuffix(UPLOAD_SUFFIX)] += version["Size"]
            elif key.startswith(("releases/", "smoke/")):  # …/<adapter>/<file>, and an adapter's name may have a slash
                stored[key.partition("/")[2].rpartition("/")[0]] += version["Size"]
    return stored


def _by_tenant(found: list[Cost]) -> list[dict[str, Any]]:
    tenants: dict[str, dict[str, Any]] = {}
    for one in found:
        tenant = tenants.setdefault(
            one.tenant, {"tenant": one.tenant, "adapters": 0, "requests": 0, "total": 0.0, "alone": 0.0}
        )
        tenant["adapters"] += 1
        for name in ("requests", "total", "alone"):
            tenant[name] += getattr(one, name)
    return sorted(tenants.values(), key=lambda one: (-one["total"], one["tenant"]))


def _lines(document: dict[str, Any], found: list[Cost]) -> list[str]:
    saved = f", {1 - document['total'] / document['alone']:.0%} less" if document["total"] < document["alone"] else ""
    return [
        f"{document['stack']}, {document['from'][:16]} to {document['to'][:16]} UTC: {document['instances']} x "
        f"${document['hourly_price']:.3f} an hour",
        "",
        f"  {'ADAPTER':<26}{'REQUESTS':>10}{'BUSY':>9}{'IDLE':>10}{'OTHER':>8}{'TOTAL':>11}",
        *(
            f"  {safe(one.adapter)[:25]:<26}{one.requests:>10,}{one.busy:>9,.2f}{one.idle:>10,.2f}"
            f"{one.storage + one.deployments:>8,.2f}{one.total:>11,.2f}"
            for one in found
        ),
        "",
        f"In all ${document['total']:,.2f}. An endpoint for each would have been ${document['alone']:,.2f}{saved}.",
        *(f"Not counted: {one}" for one in document["missing"]),
    ]
