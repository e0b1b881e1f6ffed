"""What the local cloud does as AWS does because local/patches changes MiniStack: a small test for each patch."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.cloud import LocalCloud

from .account import ACCOUNT, Account, allow, policy, run, unique
from .conftest import eventually


@pytest.fixture(scope="module")
def account(cloud: LocalCloud) -> Account:
    return Account(cloud)


def refused_code(call: Any, **request: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**request)
    return str(refused.value.response["Error"]["Code"])


# A Lambda's errors

RAISES = """
class UploadGone(Exception):
    pass

def handler(event, context):
    if event.get("fine"):
        return {"was": "fine"}
    raise UploadGone("the upload is gone")
"""


@pytest.fixture(scope="module")
def raising(account: Account) -> str:
    return account.function(RAISES)


def test_a_lambda_error_has_the_name_of_its_class(account: Account, raising: str) -> None:
    answer = account.client("lambda").invoke(FunctionName=raising, Payload=b"{}")
    assert answer["FunctionError"] == "Unhandled"
    error = json.load(answer["Payload"])
    assert (error["errorType"], error["errorMessage"]) == ("UploadGone", "the upload is gone")
    assert any("handlers.py" in line for line in error["stackTrace"])


def test_a_lambda_that_has_failed_once_can_succeed(account: Account, raising: str) -> None:
    account.client("lambda").invoke(FunctionName=raising, Payload=b"{}")
    answer = account.client("lambda").invoke(FunctionName=raising, Payload=b'{"fine": true}')
    assert "FunctionError" not in answer
    assert json.load(answer["Payload"]) == {"was": "fine"}


def task(function: str, **fields: Any) -> dict[str, Any]:
    return {
        "QueryLanguage": "JSONata",
        "StartAt": "Ask",
        "States": {
            "Ask": {
                "Type": "Task",
                "Resource": "arn:aws:states:::lambda:invoke",
                "Arguments": {"FunctionName": function, "Payload": "{% $states.input %}"},
                "Output": "{% $states.result.Payload %}",
                "End": True,
            }
            | fields,
            "Caught": {"Type": "Pass", "End": True},
        },
    }


def test_a_state_machine_catches_a_lambda_error_by_its_class(account: Account, raising: str) -> None:
    catch = {"ErrorEquals": ["UploadGone"], "Output": "{% $states.errorOutput.Error %}", "Next": "Caught"}
    machine = account.machine(task(raising, Catch=[catch]), allow("lambda:InvokeFunction", raising))
    execution = run(account, machine)
    assert (execution["status"], json.loads(execution["output"])) == ("SUCCEEDED", "UploadGone")


# S3 events


@pytest.mark.parametrize("versioned", [True, False])
def test_an_s3_event_names_the_version_if_there_is_one(account: Account, versioned: bool) -> None:
    bucket, (url, arn) = account.bucket(versioned=versioned), account.queue()
    account.s3.put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"EventBridgeConfiguration": {}}
    )
    account.rule({"source": ["aws.s3"], "detail": {"bucket": {"name": [bucket]}}}, {"Arn": arn})
    puts = [account.s3.put_object(Bucket=bucket, Key="a+b c.tar.gz", Body=body) for body in (b"1", b"22")]
    objects = sorted((event["detail"]["object"] for event in account.receive(url, 2)), key=lambda one: int(one["size"]))
    assert [one["key"] for one in objects] == ["a+b c.tar.gz"] * 2
    assert [one.get("version-id") for one in objects] == [put.get("VersionId") for put in puts]
    assert all(put.get("VersionId") for put in puts) == versioned


# State machines

YAML = """
Comment: since 2026-11-24
QueryLanguage: JSONata
StartAt: Said
States:
  Said:
    Type: Succeed
    Output:
      date: 2026-11-24
      sum: "{% $states.input.one + 1 %}"
"""


def test_a_state_machine_may_be_written_in_yaml(account: Account) -> None:
    bucket, name = account.bucket(), unique("stack")
    account.s3.put_object(Bucket=bucket, Key="machine.asl.yaml", Body=YAML.encode())
    template = {
        "Resources": {
            "Machine": {
                "Type": "AWS::StepFunctions::StateMachine",
                "Properties": {
                    "RoleArn": account.role("states"),
                    "DefinitionS3Location": {"Bucket": bucket, "Key": "machine.asl.yaml"},
                },
            }
        },
        "Outputs": {"Machine": {"Value": {"Ref": "Machine"}}},
    }
    account.cloudformation.create_stack(StackName=name, TemplateBody=json.dumps(template))
    account.cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    [output] = account.cloudformation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    execution = run(account, output["OutputValue"], {"one": 1})
    assert execution["status"] == "SUCCEEDED"
    assert json.loads(execution["output"]) == {"date": "2026-11-24", "sum": 2}, "a date stays a text"


@pytest.mark.parametrize(
    ("state", "output"),
    [
        ({"Output": {"answer": "{% $states.input.one + 1 %}"}}, {"answer": 2}),
        ({}, {"one": 1}),
        ({"QueryLanguage": "JSONPath", "OutputPath": "$.one"}, 1),
    ],
)
def test_a_succeed_state_puts_out_what_it_says(account: Account, state: dict[str, Any], output: Any) -> None:
    # A JSONPath machine may hold JSONata states, not the other way round.
    language = "JSONPath" if state.get("QueryLanguage") == "JSONPath" else "JSONata"
    states = {"Said": {"Type": "Succeed"} | state}
    machine = account.machine({"QueryLanguage": language, "StartAt": "Said", "States": states})
    assert json.loads(run(account, machine, {"one": 1})["output"]) == output


def test_a_state_machine_may_invoke_what_its_role_may(account: Account, raising: str) -> None:
    may = account.machine(task(raising), allow("lambda:InvokeFunction", raising))
    assert json.loads(run(account, may, {"fine": True})["output"]) == {"was": "fine"}
    may_not = account.machine(task(raising), allow("lambda:InvokeFunction", f"{raising}-other"))
    execution = run(account, may_not, {"fine": True})
    assert (execution["status"], execution["error"]) == ("FAILED", "Lambda.AWSLambdaException")
    assert "is not authorized to perform: lambda:InvokeFunction on resource" in execution["cause"]
    assert raising in execution["cause"]


# EventBridge

PASSES = {"QueryLanguage": "JSONata", "StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}}


def test_a_rule_starts_what_its_role_may_and_keeps_the_events_it_may_not(account: Account) -> None:
    machine, (url, queue) = account.machine(PASSES), account.queue()
    source = unique("source")

    def target(role: str) -> dict[str, Any]:
        return {"Arn": machine, "RoleArn": role, "DeadLetterConfig": {"Arn": queue}}

    def send(detail_type: str) -> None:
        entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps({"upload": detail_type})}
        assert account.events.put_events(Entries=[entry])["FailedEntryCount"] == 0

    may = account.role("events", allow("states:StartExecution", machine))
    account.rule({"source": [source], "detail-type": ["allowed"]}, target(may))
    account.rule({"source": [source], "detail-type": ["refused"]}, target(account.role("events")))
    send("refused")
    send("allowed")
    lost = [(event["source"], event["detail"]) for event in account.receive(url, 1)]
    assert lost == [(source, {"upload": "refused"})]

    def executions() -> Any:
        return account.states.list_executions(stateMachineArn=machine)["executions"]

    eventually(executions, "an execution", seconds=10)
    [execution] = executions()
    event = json.loads(account.states.describe_execution(executionArn=execution["executionArn"])["input"])
    assert event["detail"] == {"upload": "allowed"}


def test_put_events_may_be_limited_to_a_source_and_a_detail_type(account: Account) -> None:
    bus = f"arn:aws:events:us-east-1:{ACCOUNT}:event-bus/default"
    limits = {"events:source": "loradrop", "events:detail-type": "Adapter Deployed"}
    events = account.user(allow("events:PutEvents", bus, StringEquals=limits))("events")

    def entry(source: str, detail_type: str) -> dict[str, Any]:
        return {"Source": source, "DetailType": detail_type, "Detail": "{}"}

    good = entry("loradrop", "Adapter Deployed")
    assert events.put_events(Entries=[good, good])["FailedEntryCount"] == 0
    for bad in (entry("other", "Adapter Deployed"), entry("loradrop", "Other")):
        assert refused_code(events.put_events, Entries=[bad]) == "AccessDeniedException"
        assert refused_code(events.put_events, Entries=[good, bad]) == "AccessDeniedException"


# S3 and IAM


def test_the_loopback_counts_as_secure_transport(account: Account) -> None:
    bucket = account.bucket()
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]

    def deny_if_secure_is(secure: str) -> None:
        condition = {"Bool": {"aws:SecureTransport": secure}}
        deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": resources}
        account.s3.put_bucket_policy(Bucket=bucket, Policy=policy(deny | {"Condition": condition}))

    s3 = account.user(allow("s3:*"))("s3")
    deny_if_secure_is("false")
    s3.put_object(Bucket=bucket, Key="key", Body=b"")
    deny_if_secure_is("true")
    assert refused_code(s3.put_object, Bucket=bucket, Key="key", Body=b"") == "AccessDenied"


def test_a_bucket_may_be_kept_for_one_role(account: Account) -> None:
    bucket = account.bucket()
    may_put = allow("s3:PutObject", f"arn:aws:s3:::{bucket}/*")
    writer, other = account.role("", may_put), account.role("", may_put)
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    only_writer = {"Condition": {"ArnNotEquals": {"aws:PrincipalArn": writer}}}
    account.s3.put_bucket_policy(Bucket=bucket, Policy=policy(deny | only_writer))
    account.assumed(writer)("s3").put_object(Bucket=bucket, Key="key", Body=b"")
    for refused in (account.assumed(other)("s3"), account.user(may_put)("s3")):
        assert refused_code(refused.put_object, Bucket=bucket, Key="key", Body=b"") == "AccessDenied"


def test_whether_an_object_exists_is_told_to_those_who_may_list(account: Account) -> None:
    bucket = account.bucket(versioned=True)
    account.s3.put_object(Bucket=bucket, Key="there", Body=b"")
    reads = allow(["s3:GetObject", "s3:GetObjectVersion", "s3:GetBucketPolicy"], ["arn:aws:s3:::*"])
    lists = allow(["s3:ListBucket", "s3:ListBucketVersions"], f"arn:aws:s3:::{bucket}")
    reader, lister = account.user(reads)("s3"), account.user(reads, lists)("s3")
    for client in (reader, lister):
        client.get_object(Bucket=bucket, Key="there")
    missing = {"Bucket": bucket, "Key": "missing"}
    assert refused_code(lister.get_object, **missing) == "NoSuchKey"
    assert refused_code(reader.get_object, **missing) == "AccessDenied"
    assert refused_code(lister.head_object, **missing) == "404"
    assert refused_code(reader.head_object, **missing) == "403"
    version = {"Bucket": bucket, "Key": "there", "VersionId": "0" * 32}
    assert refused_code(lister.get_object, **version) == "NoSuchVersion"
    assert refused_code(reader.get_object, **version) == "AccessDenied"
    # It is about objects alone.
    assert refused_code(reader.get_object, Bucket="no-such-bucket", Key="key") == "NoSuchBucket"
    assert refused_code(reader.get_bucket_policy, Bucket=bucket) == "NoSuchBucketPolicy"
