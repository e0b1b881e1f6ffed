"""What the stack asks of the local cloud's services, each in a small account of its own: events, S3, DynamoDB, Step Functions."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.cloud import LocalCloud

from .account import ACCOUNT, Account, allow, ended, policy, run, unique
from .conftest import eventually


@pytest.fixture(scope="module")
def account(cloud: LocalCloud) -> Account:
    return Account(cloud)


def refused(call: Any, **request: Any) -> ClientError:
    with pytest.raises(ClientError) as error:
        call(**request)
    return error.value


def code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


# Executions


def machine_of(account: Account, states: dict[str, Any], *may: Any, **fields: Any) -> str:
    return account.machine({"QueryLanguage": "JSONata", "StartAt": next(iter(states)), "States": states} | fields, *may)


WAITS = {"Wait": {"Type": "Wait", "Seconds": 60, "End": True}}


@pytest.mark.parametrize(
    ("status", "states", "fields"),
    [
        ("SUCCEEDED", {"Done": {"Type": "Succeed", "Output": {"fine": True}}}, {}),
        ("FAILED", {"Broken": {"Type": "Fail", "Error": "Broken", "Cause": "on request"}}, {}),
        ("TIMED_OUT", WAITS, {"TimeoutSeconds": 1}),
        ("ABORTED", WAITS, {}),
    ],
)
def test_a_change_of_an_executions_status_is_an_event(
    account: Account, status: str, states: dict[str, Any], fields: dict[str, Any]
) -> None:
    machine, (url, queue) = machine_of(account, states, **fields), account.queue()
    account.rule({"source": ["aws.states"], "detail": {"stateMachineArn": [machine]}}, {"Arn": queue})
    started = account.states.start_execution(stateMachineArn=machine, name="one", input='{"given": 1}')
    if status == "ABORTED":
        account.states.stop_execution(executionArn=started["executionArn"], error="Stopped", cause="by hand")
    details = {event["detail"]["status"]: event for event in account.receive(url, 2)}
    assert set(details) == {"RUNNING", status}
    for event in details.values():
        assert event["detail-type"] == "Step Functions Execution Status Change"
        assert event["resources"] == [started["executionArn"]]
        detail = event["detail"]
        assert (detail["executionArn"], detail["stateMachineArn"]) == (started["executionArn"], machine)
        assert (detail["name"], json.loads(detail["input"])) == ("one", {"given": 1})
        assert abs(detail["startDate"] / 1000 - time.time()) < 60
    detail = details[status]["detail"]
    assert details["RUNNING"]["detail"]["stopDate"] is None
    assert detail["stopDate"] >= detail["startDate"]
    assert detail["output"] == ('{"fine": true}' if status == "SUCCEEDED" else None)
    if status == "FAILED":
        assert (detail["error"], detail["cause"]) == ("Broken", "on request")
    assert account.states.describe_execution(executionArn=started["executionArn"])["status"] == status


SLOW_TO_FAIL = """
import time

def handler(event, context):
    time.sleep(1)
    raise ValueError("too late")
"""


def test_an_execution_that_was_stopped_stays_so(account: Account) -> None:
    function = account.function(SLOW_TO_FAIL)
    work = {"Type": "Task", "Resource": function, "End": True}
    machine = machine_of(account, {"Work": work}, allow("lambda:InvokeFunction"))
    arn = account.states.start_execution(stateMachineArn=machine)["executionArn"]

    def events() -> list[str]:
        return [event["type"] for event in account.states.get_execution_history(executionArn=arn)["events"]]

    eventually(lambda: "TaskScheduled" in events(), "the Lambda's start", seconds=10)
    account.states.stop_execution(executionArn=arn)
    eventually(lambda: "TaskFailed" in events(), "the Lambda's end", seconds=10)
    assert account.states.describe_execution(executionArn=arn)["status"] == "ABORTED"
    assert "ExecutionFailed" not in events()


def test_executions_are_named_once_and_listed_by_status(account: Account) -> None:
    waiting = machine_of(account, WAITS)
    arns = [account.states.start_execution(stateMachineArn=waiting)["executionArn"] for _ in range(3)]
    first = account.states.start_execution(stateMachineArn=waiting, name="once")["executionArn"]
    assert first.endswith(":once")
    assert code(refused(account.states.start_execution, stateMachineArn=waiting, name="once", input='{"a": 1}')) == (
        "ExecutionAlreadyExists"
    )
    account.states.stop_execution(executionArn=arns[0])
    pages = account.states.get_paginator("list_executions").paginate(
        stateMachineArn=waiting, statusFilter="RUNNING", PaginationConfig={"PageSize": 2}
    )
    listed = [[one["executionArn"] for one in page["executions"]] for page in pages]
    assert sorted(one for page in listed for one in page) == sorted([*arns[1:], first])
    assert len(listed) == 2
    missing = refused(account.states.describe_execution, executionArn=first + "x")
    assert code(missing) == "ExecutionDoesNotExist"
    for arn in (*arns[1:], first):
        account.states.stop_execution(executionArn=arn)


COUNTS = """
import json, os, time

def handler(event, context):
    time.sleep(0.3)
    return {"twice": event["number"] * 2, "started": event["started"]}
"""


def test_a_map_works_on_so_many_items_at_once(account: Account) -> None:
    repair = {
        "Type": "Task",
        "Resource": account.function(COUNTS),
        "Arguments": {"number": "{% $states.input.item %}", "started": "{% $states.input.run %}"},
        "Output": "{% $states.result.twice %}",
        "End": True,
    }
    each = {
        "Type": "Map",
        "Items": "{% $states.input.numbers %}",
        "ItemSelector": {"item": "{% $states.context.Map.Item.Value %}", "run": "{% $states.context.Execution.Id %}"},
        "MaxConcurrency": 2,
        "ItemProcessor": {
            "ProcessorConfig": {"Mode": "INLINE"},
            "StartAt": "Repair",
            "States": {"Repair": repair},
        },
        "Assign": {"sum": "{% $sum($states.result) %}"},
        "Next": "Done",
    }
    done = {"Type": "Succeed", "Output": {"each": "{% $states.input %}", "sum": "{% $sum %}"}}
    machine = machine_of(account, {"Each": each, "Done": done}, allow("lambda:InvokeFunction"))
    started = time.monotonic()
    execution = run(account, machine, {"numbers": [1, 2, 3, 4]})
    assert json.loads(execution["output"]) == {"each": [2, 4, 6, 8], "sum": 20}
    assert time.monotonic() - started > 0.6, "two at once, and twice so"
    assert json.loads(run(account, machine, {"numbers": []})["output"])["each"] == []


# The limit of a payload

FILLED = """
def handler(event, context):
    return event["letter"] * event["count"]
"""


@pytest.mark.parametrize(
    ("letter", "count", "ends"), [("a", 262_142, True), ("a", 262_143, False), ("あ", 87_381, False)]
)
def test_a_payload_over_the_limit_ends_an_execution_uncaught(
    account: Account, letter: str, count: int, ends: bool
) -> None:
    fill = {
        "Type": "Task",
        "Resource": account.function(FILLED),
        "Output": {},
        "Retry": [{"ErrorEquals": ["States.ALL"], "MaxAttempts": 2}],
        "Catch": [{"ErrorEquals": ["States.ALL"], "Next": "Caught"}],
        "End": True,
    }
    states = {"Fill": fill, "Caught": {"Type": "Succeed"}}
    execution = run(
        account, machine_of(account, states, allow("lambda:InvokeFunction")), {"letter": letter, "count": count}
    )
    assert (execution["status"], execution.get("error")) == (
        ("SUCCEEDED", None) if ends else ("FAILED", "States.DataLimitExceeded")
    )


def test_variables_and_outputs_have_the_same_limit(account: Account) -> None:
    large = "{% $pad('x', 300000) %}"
    for state in ({"Assign": {"large": large}, "Output": {}}, {"Output": large}):
        machine = machine_of(account, {"Make": {"Type": "Pass", "End": True} | state})
        assert run(account, machine)["error"] == "States.DataLimitExceeded"


# A Lambda's other ends

DIES = """
import os, time

def handler(event, context):
    if event["how"] == "dies":
        os._exit(1)
    time.sleep(60)
"""


@pytest.mark.parametrize(("how", "error"), [("dies", "Runtime.ExitError"), ("hangs", "Sandbox.Timedout")])
def test_a_lambda_that_dies_or_hangs_has_the_name_that_aws_gives_it(account: Account, how: str, error: str) -> None:
    function = account.function(DIES)
    account.client("lambda").update_function_configuration(FunctionName=function, Timeout=1)
    catch = {"ErrorEquals": [error], "Output": "{% $states.errorOutput.Error %}", "Next": "Caught"}
    states = {
        "Work": {"Type": "Task", "Resource": function, "Catch": [catch], "End": True},
        "Caught": {"Type": "Pass", "End": True},
    }
    execution = run(account, machine_of(account, states, allow("lambda:InvokeFunction")), {"how": how})
    assert (execution["status"], execution.get("output")) == ("SUCCEEDED", f'"{error}"')


SLEEPS = """
import time

def handler(event, context):
    time.sleep(1)
"""


def test_too_many_lambdas_at_once_are_refused_by_name(account: Account) -> None:
    function = account.function(SLEEPS)
    account.client("lambda").put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=1)
    catch = {
        "ErrorEquals": ["Lambda.TooManyRequestsException"],
        "Output": "{% $states.errorOutput %}",
        "Next": "Caught",
    }
    states = {
        "Work": {"Type": "Task", "Resource": function, "Catch": [catch], "End": True},
        "Caught": {"Type": "Pass", "End": True},
    }
    machine = machine_of(account, states, allow("lambda:InvokeFunction"))
    arns = [account.states.start_execution(stateMachineArn=machine)["executionArn"] for _ in range(3)]
    outputs = [json.loads(ended(account, arn)["output"]) for arn in arns]
    throttled = [output for output in outputs if output]
    assert len(throttled) == 2
    assert {output["Error"] for output in throttled} == {"Lambda.TooManyRequestsException"}
    assert all(output["Cause"].startswith("Rate Exceeded") for output in throttled)


# EventBridge's targets


def test_a_rule_may_reword_an_event_for_its_target(account: Account) -> None:
    machine = machine_of(account, {"Done": {"Type": "Succeed"}})
    role = account.role("events", allow("states:StartExecution", machine))
    source = unique("source")
    transformed = {
        "InputPathsMap": {"key": "$.detail.object.key"},
        "InputTemplate": '{"adapter_key": <key>, "why": "deleted"}',
    }
    account.rule(
        {"source": [source], "detail-type": ["transformed"]},
        {"Arn": machine, "RoleArn": role, "InputTransformer": transformed},
    )
    account.rule(
        {"source": [source], "detail-type": ["plain"]}, {"Arn": machine, "RoleArn": role, "Input": '{"all": true}'}
    )
    detail = json.dumps({"object": {"key": 'adapters/a "b"+c.tar.gz'}})
    for kind in ("transformed", "plain"):
        account.events.put_events(Entries=[{"Source": source, "DetailType": kind, "Detail": detail}])

    def inputs() -> list[Any] | None:
        executions = account.states.list_executions(stateMachineArn=machine)["executions"]
        found = [account.states.describe_execution(executionArn=one["executionArn"])["input"] for one in executions]
        return [json.loads(one) for one in found] if len(found) == 2 else None

    got = eventually(inputs, "two executions", seconds=10)
    assert {"all": True} in got
    assert {"adapter_key": 'adapters/a "b"+c.tar.gz', "why": "deleted"} in got


def test_a_rule_publishes_where_the_topics_policy_lets_it(account: Account) -> None:
    sns, (url, queue), (lost_url, lost) = account.client("sns"), account.queue(), account.queue()
    topic, refusing = (sns.create_topic(Name=unique("topic"))["TopicArn"] for _ in range(2))
    publish = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sns:Publish"}
    sns.set_topic_attributes(
        TopicArn=topic, AttributeName="Policy", AttributeValue=policy(publish | {"Resource": topic})
    )
    send = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage"}
    account.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy(send | {"Resource": queue})})
    source = unique("source")
    for one in (topic, refusing):
        sns.subscribe(TopicArn=one, Protocol="sqs", Endpoint=queue)
        account.rule({"source": [source], "detail": {"to": [one]}}, {"Arn": one, "DeadLetterConfig": {"Arn": lost}})
        detail = json.dumps({"to": one})
        account.events.put_events(Entries=[{"Source": source, "DetailType": "said", "Detail": detail}])
    [message] = account.receive(url, 1)
    assert json.loads(message["Message"])["detail"] == {"to": topic}
    [event] = account.receive(lost_url, 1)
    assert event["detail"] == {"to": refusing}


TEMPLATE = """
Resources:
  Table:
    Type: AWS::DynamoDB::Table
    Properties:
      BillingMode: PAY_PER_REQUEST
      AttributeDefinitions:
        - {AttributeName: adapter, AttributeType: S}
        - {AttributeName: record, AttributeType: S}
        - {AttributeName: watch, AttributeType: S}
      KeySchema: [{AttributeName: adapter, KeyType: HASH}, {AttributeName: record, KeyType: RANGE}]
      GlobalSecondaryIndexes:
        - IndexName: watched
          KeySchema: [{AttributeName: watch, KeyType: HASH}, {AttributeName: adapter, KeyType: RANGE}]
          Projection: {ProjectionType: ALL}
  One:
    Type: AWS::StepFunctions::StateMachine
    Properties:
      RoleArn: !Sub arn:aws:iam::${AWS::AccountId}:role/any
      DefinitionString: |
        QueryLanguage: JSONata
        StartAt: Done
        States:
          Done: {Type: Succeed, Output: {which: one}}
  Two:
    Type: AWS::StepFunctions::StateMachine
    Properties:
      RoleArn: !Sub arn:aws:iam::${AWS::AccountId}:role/any
      DefinitionString: |
        QueryLanguage: JSONata
        StartAt: Done
        States:
          Done: {Type: Succeed, Output: {which: two}}
  Schedule:
    Type: AWS::Events::Rule
    Properties:
      ScheduleExpression: rate(15 minutes)
      State: ENABLED
      Targets:
        - Id: Two
          Arn: !Ref Two
          RoleArn: !Sub arn:aws:iam::${AWS::AccountId}:role/any
          Input: '{"all": true}'
Outputs:
  Table: {Value: !Ref Table}
  One: {Value: !Ref One}
  Two: {Value: !Ref Two}
  Schedule: {Value: !Ref Schedule}
"""


@pytest.fixture(scope="module")
def made(account: Account) -> dict[str, str]:
    """Outputs of a stack with two machines in YAML, a schedule, and a table with a sort key and an index."""
    name = unique("services")
    account.cloudformation.create_stack(StackName=name, TemplateBody=TEMPLATE)
    account.cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    outputs = account.cloudformation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    return {one["OutputKey"]: one["OutputValue"] for one in outputs}


def test_two_machines_and_a_schedule_in_one_template(account: Account, made: dict[str, str]) -> None:
    for name in ("One", "Two"):
        assert json.loads(run(account, made[name])["output"]) == {"which": name.lower()}
    rule = account.events.describe_rule(Name=made["Schedule"].rpartition("/")[2])
    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(15 minutes)", "ENABLED")


# DynamoDB


def item(adapter: str, record: str, **more: Any) -> dict[str, Any]:
    return {"adapter": {"S": adapter}, "record": {"S": record}} | more


def test_an_index_is_queried_in_pages(account: Account, made: dict[str, str]) -> None:
    dynamodb, adapters = account.client("dynamodb"), [f"a{number}" for number in range(7)]
    for adapter in adapters:
        dynamodb.put_item(TableName=made["Table"], Item=item(adapter, "state", watch={"S": "state"}))
        dynamodb.put_item(TableName=made["Table"], Item=item(adapter, "upload#1"))
    pages = list(
        dynamodb.get_paginator("query").paginate(
            TableName=made["Table"],
            IndexName="watched",
            KeyConditionExpression="watch = :state AND adapter > :after",
            ExpressionAttributeValues={":state": {"S": "state"}, ":after": {"S": "a0"}},
            PaginationConfig={"PageSize": 4},
        )
    )
    assert [[one["adapter"]["S"] for one in page["Items"]] for page in pages] == [adapters[1:5], adapters[5:]]
    assert set(pages[0]["LastEvaluatedKey"]) == {"adapter", "record", "watch"}


def test_a_transaction_says_which_of_its_conditions_failed(account: Account, made: dict[str, str]) -> None:
    dynamodb, table = account.client("dynamodb"), made["Table"]
    dynamodb.put_item(TableName=table, Item=item("t", "state", revision={"N": "3"}))

    def write(revision: str) -> None:
        state = {
            "TableName": table,
            "Item": item("t", "state", revision={"N": str(int(revision) + 1)}),
            "ConditionExpression": "attribute_not_exists(adapter) OR revision = :revision",
            "ExpressionAttributeValues": {":revision": {"N": revision}},
        }
        upload = {
            "TableName": table,
            "Item": item("t", "upload#1"),
            "ConditionExpression": "attribute_not_exists(adapter)",
        }
        dynamodb.transact_write_items(TransactItems=[{"Put": state}, {"Put": upload}])

    with pytest.raises(dynamodb.exceptions.TransactionCanceledException) as canceled:
        write("2")
    assert [one["Code"] for one in canceled.value.response["CancellationReasons"]] == ["ConditionalCheckFailed", "None"]
    write("3")
    got = dynamodb.get_item(TableName=table, Key=item("t", "state"), ConsistentRead=True)
    assert got["Item"]["revision"]["N"] == "4"
    with pytest.raises(dynamodb.exceptions.TransactionCanceledException) as canceled:
        write("4")
    assert [one["Code"] for one in canceled.value.response["CancellationReasons"]] == ["None", "ConditionalCheckFailed"]


def test_a_policy_may_keep_a_team_to_its_own_hash_keys(account: Account, made: dict[str, str]) -> None:
    table = f"arn:aws:dynamodb:us-east-1:{ACCOUNT}:table/{made['Table']}"
    own = {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["team/*"]}, "Null": {"dynamodb:LeadingKeys": "false"}}
    actions = ["dynamodb:GetItem", "dynamodb:Query", "dynamodb:PutItem", "dynamodb:BatchGetItem", "dynamodb:Scan"]
    team = account.user(allow(actions, table, **own))("dynamodb")

    def uses(hash_key: str) -> list[Any]:
        name, key = made["Table"], item(hash_key, "state")
        return [
            lambda: team.put_item(TableName=name, Item=key),
            lambda: team.get_item(TableName=name, Key=key),
            lambda: team.query(
                TableName=name,
                KeyConditionExpression="#adapter = :adapter",
                ExpressionAttributeNames={"#adapter": "adapter"},
                ExpressionAttributeValues={":adapter": {"S": hash_key}},
            ),
            lambda: team.batch_get_item(RequestItems={name: {"Keys": [key]}}),
            lambda: team.transact_write_items(TransactItems=[{"Put": {"TableName": name, "Item": key}}]),
        ]

    for use in uses("team/one"):
        use()
    for use in (*uses("other/one"), lambda: team.scan(TableName=made["Table"])):
        assert code(refused(use)) == "AccessDeniedException"


# S3


def listened(account: Account) -> tuple[str, str]:
    """A versioned bucket, and the URL of a queue with the events of it."""
    bucket, (url, queue) = account.bucket(versioned=True), account.queue()
    account.s3.put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"EventBridgeConfiguration": {}}
    )
    account.rule({"source": ["aws.s3"], "detail": {"bucket": {"name": [bucket]}}}, {"Arn": queue})
    return bucket, url


def test_each_way_to_make_an_object_is_an_event_that_says_which(account: Account) -> None:
    (bucket, url), key = listened(account), "adapters/a+b%20c.tar.gz"
    one = {"Bucket": bucket, "Key": key}
    made = [account.s3.put_object(**one, Body=b"1", Tagging="team=red", StorageClass="STANDARD_IA")]
    made.append(
        account.s3.copy_object(
            **one,
            CopySource=one,
            MetadataDirective="REPLACE",
            Metadata={"repeats": "first"},
            StorageClass="STANDARD_IA",
        )
    )
    upload = account.s3.create_multipart_upload(**one)["UploadId"]
    part = account.s3.upload_part(**one, UploadId=upload, PartNumber=1, Body=b"22")
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    made.append(account.s3.complete_multipart_upload(**one, UploadId=upload, MultipartUpload=parts))

    details = {event["detail"]["object"]["version-id"]: event["detail"] for event in account.receive(url, 3)}
    assert list(details.keys() & {one["VersionId"] for one in made})
    in_order = [details[one["VersionId"]] for one in made]
    assert [one["reason"] for one in in_order] == ["PutObject", "CopyObject", "CompleteMultipartUpload"]
    sequencers = [one["object"]["sequencer"] for one in in_order]
    assert sorted(sequencers, key=lambda text: int(text, 16)) == sequencers
    assert len(set(sequencers)) == 3
    assert [one["object"]["size"] for one in in_order] == [1, 1, 2]
    for detail in in_order:
        assert (detail["object"]["key"], detail["requester"]) == (key, ACCOUNT)
        assert detail["source-ip-address"] == "127.0.0.1"
        assert detail["object"]["etag"]

    copied = {"VersionId": made[1]["VersionId"]}
    head = account.s3.head_object(**one, **copied)
    assert (head["Metadata"], head["StorageClass"]) == ({"repeats": "first"}, "STANDARD_IA")
    assert account.s3.get_object_tagging(**one, **copied)["TagSet"] == [{"Key": "team", "Value": "red"}]
    assert account.s3.get_object_tagging(**one)["TagSet"] == [], "each version has its own"
    tags = [{"Key": "status", "Value": "live"}]
    account.s3.put_object_tagging(**one, VersionId=made[0]["VersionId"], Tagging={"TagSet": tags})
    assert account.s3.get_object_tagging(**one, VersionId=made[0]["VersionId"])["TagSet"] == tags
    assert account.s3.get_object_tagging(**one, **copied)["TagSet"] == [{"Key": "team", "Value": "red"}]


def test_each_way_to_delete_an_object_is_an_event_that_says_which(account: Account) -> None:
    bucket, url = listened(account)
    one = {"Bucket": bucket, "Key": "adapters/a.tar.gz"}
    put = account.s3.put_object(**one, Body=b"1")
    marker = account.s3.delete_object(**one)
    account.s3.delete_object(**one, VersionId=marker["VersionId"])
    account.s3.delete_object(**one, VersionId=put["VersionId"])
    events = sorted(account.receive(url, 4), key=lambda event: int(event["detail"]["object"]["sequencer"], 16))
    assert [event["detail-type"] for event in events] == ["Object Created"] + ["Object Deleted"] * 3
    assert [event["detail"].get("deletion-type") for event in events] == [
        None,
        "Delete Marker Created",
        "Permanently Deleted",
        "Permanently Deleted",
    ]
    versions = [put["VersionId"], marker["VersionId"], marker["VersionId"], put["VersionId"]]
    assert [event["detail"]["object"]["version-id"] for event in events] == versions
    assert all("size" not in event["detail"]["object"] for event in events[1:])
    assert {event["detail"]["reason"] for event in events[1:]} == {"DeleteObject"}


def test_versions_are_listed_in_pages(account: Account) -> None:
    bucket = account.bucket(versioned=True)
    made = []
    for key in ("a", "a", "b", "c"):
        made.append((key, account.s3.put_object(Bucket=bucket, Key=key, Body=io.BytesIO(b""))["VersionId"]))
    marker = account.s3.delete_object(Bucket=bucket, Key="b")["VersionId"]
    pages = list(
        account.s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
    )
    assert len(pages) == 3
    assert pages[0]["NextKeyMarker"] == "a"
    versions = [(one["Key"], one["VersionId"]) for page in pages for one in page.get("Versions", [])]
    assert sorted(versions) == sorted(made)
    current = {one["Key"]: one["VersionId"] for page in pages for one in page.get("Versions", []) if one["IsLatest"]}
    assert current == {"a": made[1][1], "c": made[3][1]}
    assert [one["VersionId"] for page in pages for one in page.get("DeleteMarkers", [])] == [marker]


def test_an_object_under_a_key_is_read_by_those_who_may_use_the_key(account: Account) -> None:
    bucket, key = account.bucket(), account.client("kms").create_key()["KeyMetadata"]["Arn"]
    account.s3.put_object(Bucket=bucket, Key="a", Body=b"a", ServerSideEncryption="aws:kms", SSEKMSKeyId=key)
    account.s3.put_object(Bucket=bucket, Key="b", Body=b"b")
    reads = allow("s3:GetObject", f"arn:aws:s3:::{bucket}/*")
    without, with_key = account.user(reads)("s3"), account.user(reads, allow("kms:Decrypt", key))("s3")
    error = refused(without.get_object, Bucket=bucket, Key="a")
    assert (code(error), "kms:Decrypt" in str(error)) == ("AccessDenied", True)
    assert with_key.get_object(Bucket=bucket, Key="a")["Body"].read() == b"a"
    assert without.get_object(Bucket=bucket, Key="b")["Body"].read() == b"b"


def test_an_archived_object_is_not_read(account: Account) -> None:
    bucket = account.bucket()
    account.s3.put_object(Bucket=bucket, Key="a", Body=b"a", StorageClass="GLACIER")
    assert code(refused(account.s3.get_object, Bucket=bucket, Key="a")) == "InvalidObjectState"
    assert account.s3.head_object(Bucket=bucket, Key="a")["StorageClass"] == "GLACIER"


# Faults on request

WORKS = """
import boto3, os

def handler(event, context):
    s3 = boto3.client("s3")
    for key in ("one", "two", "three"):
        s3.put_object(Bucket=event["bucket"], Key=key, Body=b"")
    return "done"
"""


@pytest.fixture
def faulty(account: Account) -> Iterator[LocalCloud]:
    """The cloud, on which no fault is left after the test."""
    before = account.cloud.behaviour()
    yield account.cloud
    account.cloud.behave(**before)


@pytest.fixture(scope="module")
def worker(account: Account) -> tuple[str, str]:
    """A function that writes three objects, and a machine that runs it, without retries."""
    function = account.function(WORKS, allow("s3:PutObject"))
    work = {"Work": {"Type": "Task", "Resource": function, "End": True}}
    return function.rpartition(":")[2], machine_of(account, work, allow("lambda:InvokeFunction"))


def keys(account: Account, bucket: str) -> list[str]:
    return [one["Key"] for one in account.s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.mark.parametrize(
    ("kill", "written"),
    [
        ({"after_calls": 0}, []),
        ({"after_calls": 1}, ["one"]),
        ({"after_calls": 2}, ["one", "two"]),
        ({}, ["one", "three", "two"]),
        ({"error": "Sandbox.Timedout"}, ["one", "three", "two"]),
    ],
)
def test_a_lambda_dies_at_any_place(
    account: Account, faulty: LocalCloud, worker: tuple[str, str], kill: dict[str, Any], written: list[str]
) -> None:
    (function, machine), bucket = worker, account.bucket()
    faulty.behave(kills=[{"function": function, "nth": 2} | kill])
    assert run(account, machine, {"bucket": account.bucket()})["status"] == "SUCCEEDED", "it is the second that dies"
    execution = run(account, machine, {"bucket": bucket})
    assert execution.get("error") == kill.get("error", "Runtime.ExitError")
    assert keys(account, bucket) == written
    assert run(account, machine, {"bucket": bucket})["status"] == "SUCCEEDED"


def test_an_aws_call_is_refused_or_loses_its_answer(
    account: Account, faulty: LocalCloud, worker: tuple[str, str]
) -> None:
    (function, machine), bucket = worker, account.bucket()
    refusal = {"action": "s3:PutObject", "nth": 2, "function": function, "code": "AccessDenied", "status": 403}
    faulty.behave(refusals=[refusal])
    account.s3.put_object(Bucket=bucket, Key="mine", Body=b"")  # of nobody's Lambda, and not counted
    execution = run(account, machine, {"bucket": bucket})
    assert execution["error"] == "AccessDenied"  # the class that botocore makes of S3's code
    assert keys(account, bucket) == ["mine", "one"]

    lost, bucket = refusal | {"nth": 3, "carried_out": True}, account.bucket()
    faulty.behave(refusals=[lost])
    assert run(account, machine, {"bucket": bucket})["error"] == "AccessDenied"
    assert keys(account, bucket) == ["one", "three", "two"]


def test_each_protocol_is_refused_in_its_own_words(account: Account, faulty: LocalCloud, made: dict[str, str]) -> None:
    dynamodb, sns = account.client("dynamodb"), account.client("sns")
    calls: list[tuple[str, Any]] = [
        ("dynamodb:GetItem", lambda: dynamodb.get_item(TableName=made["Table"], Key=item("a", "b"))),
        ("sns:Publish", lambda: sns.publish(TopicArn="arn:aws:sns:us-east-1:000000000000:none", Message="x")),
        ("s3:GetObject", lambda: account.s3.get_object(Bucket="none", Key="none")),
        ("states:StartExecution", lambda: account.states.start_execution(stateMachineArn=made["One"])),
        ("events:PutEvents", lambda: account.events.put_events(Entries=[{"Source": "s"}])),
        ("sagemaker:ListTags", lambda: account.sagemaker.list_tags(ResourceArn="arn:aws:sagemaker:us-east-1:0:x/y")),
    ]
    faulty.behave(refusals=[{"action": action, "code": "OnRequest", "times": 2} for action, _ in calls])
    for _, call in calls:
        assert code(refused(call)) == "OnRequest"


# SageMaker's permissions


@pytest.fixture(scope="module")
def base(account: Account) -> str:
    """A base component, on an endpoint of the same name."""
    name, sagemaker = unique("base"), account.sagemaker
    variant = {"VariantName": "AllTraffic", "InstanceType": "ml.g6e.xlarge", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant], ExecutionRoleArn=account.role("sagemaker")
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    container = {"Image": "djl-inference:lmi", "Environment": {}}
    sagemaker.create_inference_component(
        InferenceComponentName=name,
        EndpointName=name,
        Specification={"Container": container, "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 4096}},
        Tags=[{"Key": "owner", "Value": "other"}],
    )
    assert (
        sagemaker.describe_inference_component(InferenceComponentName=name)["InferenceComponentStatus"] == "InService"
    )
    return name


def component(base: str, name: str, **tags: str) -> dict[str, Any]:
    return {
        "InferenceComponentName": name,
        "EndpointName": base,
        "Specification": {"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": "s3://none/none.tar.gz"}},
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }


def test_tags_are_allowed_within_the_creating_call_alone(account: Account, base: str) -> None:
    tagged = {"sagemaker:TaggingAction": "CreateInferenceComponent", "aws:RequestTag/owner": "us"}
    creator = account.user(
        allow("sagemaker:CreateInferenceComponent"), allow("sagemaker:AddTags", StringEquals=tagged)
    )("sagemaker")
    creator.create_inference_component(**component(base, "ours", owner="us"))
    other = refused(creator.create_inference_component, **component(base, "theirs", owner="them"))
    assert code(other) == "AccessDeniedException"
    arn = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:inference-component/{base}"
    later = refused(creator.add_tags, ResourceArn=arn, Tags=[{"Key": "owner", "Value": "us"}])
    assert code(later) == "AccessDeniedException"
    tags = account.sagemaker.list_tags(ResourceArn=arn)["Tags"]
    assert tags == [{"Key": "owner", "Value": "other"}]


def test_deletions_are_allowed_by_tag_and_denied_for_what_is_not_there(account: Account, base: str) -> None:
    user = account.user(
        allow("sagemaker:DeleteInferenceComponent", StringEquals={"aws:ResourceTag/owner": "us"}),
        allow("sagemaker:DescribeInferenceComponent"),
    )("sagemaker")
    account.sagemaker.create_inference_component(**component(base, "mine", owner="us"))
    account.sagemaker.describe_inference_component(InferenceComponentName="mine")
    user.delete_inference_component(InferenceComponentName="mine")
    assert code(refused(user.delete_inference_component, InferenceComponentName=base)) == "AccessDeniedException"
    assert code(refused(user.delete_inference_component, InferenceComponentName="none")) == "AccessDeniedException"
    missing = refused(user.describe_inference_component, InferenceComponentName="none")
    assert (code(missing), "Could not find" in str(missing)) == ("ValidationException", True)


# Logs, metrics, alarms

MEASURES = """
import json

def handler(event, context):
    print("the adapter is", event["adapter"])
    metrics = [{"Name": "AdapterFailed", "Unit": "Count"}]
    directive = {"Namespace": event["namespace"], "Dimensions": [["service"]], "Metrics": metrics}
    aws = {"Timestamp": 0, "CloudWatchMetrics": [directive]}
    print(json.dumps({"_aws": aws, "service": event["service"], "AdapterFailed": [1, 1]}))
"""


def test_logs_and_metrics_of_a_function_can_be_read_and_alarms_follow_them(account: Account) -> None:
    cloudwatch, logs, function = account.client("cloudwatch"), account.client("logs"), account.function(MEASURES)
    namespace, (url, queue) = unique("namespace"), account.queue()
    topic = account.client("sns").create_topic(Name=unique("topic"))["TopicArn"]
    send = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage"}
    account.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy(send | {"Resource": queue})})
    account.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue)
    alarms = {service: f"{namespace}-{service}" for service in ("ours", "other")}
    for service, name in alarms.items():
        cloudwatch.put_metric_alarm(
            AlarmName=name,
            Namespace=namespace,
            MetricName="AdapterFailed",
            Dimensions=[{"Name": "service", "Value": service}],
            Statistic="Sum",
            Period=300,
            EvaluationPeriods=1,
            Threshold=0,
            ComparisonOperator="GreaterThanThreshold",
            TreatMissingData="notBreaching",
            AlarmActions=[topic],
        )

    def states() -> dict[str, str]:
        described = cloudwatch.describe_alarms(AlarmNames=list(alarms.values()))["MetricAlarms"]
        return {one["AlarmName"].rpartition("-")[2]: one["StateValue"] for one in described}

    assert states() == {"ours": "OK", "other": "OK"}
    given = {"adapter": "acme", "namespace": namespace, "service": "ours"}
    account.client("lambda").invoke(FunctionName=function, Payload=json.dumps(given))
    assert states() == {"ours": "ALARM", "other": "OK"}
    assert json.loads(account.receive(url, 1)[0]["Message"])["NewStateValue"] == "ALARM"

    now = time.time()
    window = {"StartTime": now - 300, "EndTime": now + 60, "Period": 60, "Statistics": ["Sum"]}
    got = cloudwatch.get_metric_statistics(
        Namespace=namespace, MetricName="AdapterFailed", Dimensions=[{"Name": "service", "Value": "ours"}], **window
    )
    assert sum(point["Sum"] for point in got["Datapoints"]) == 2
    name = function.rpartition(":")[2]
    got = cloudwatch.get_metric_statistics(
        Namespace="AWS/Lambda", MetricName="Invocations", Dimensions=[{"Name": "FunctionName", "Value": name}], **window
    )
    assert sum(point["Sum"] for point in got["Datapoints"]) == 1
    events = logs.filter_log_events(logGroupName=f"/aws/lambda/{name}", filterPattern="adapter")["events"]
    assert any(event["message"] == "the adapter is acme" for event in events)


def test_executions_are_counted_by_how_they_end(account: Account) -> None:
    machine = machine_of(account, {"Broken": {"Type": "Fail", "Error": "Broken"}})
    run(account, machine)
    now = time.time()
    got = account.client("cloudwatch").get_metric_statistics(
        Namespace="AWS/States",
        MetricName="ExecutionsFailed",
        Dimensions=[{"Name": "StateMachineArn", "Value": machine}],
        StartTime=now - 300,
        EndTime=now + 60,
        Period=60,
        Statistics=["Sum"],
    )
    assert sum(point["Sum"] for point in got["Datapoints"]) == 1
