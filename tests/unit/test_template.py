"""What cfn-lint cannot know of the template: that parts of it agree with each other and with the code."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import loradrop
from loradrop.lifecycle import Outcome
from loradrop.profile import DEFAULT_ENGINE_VERSION, load_profile
from loradrop.reconcile import Repair
from loradrop.smoke import ContainerKind
from tests.template import TEMPLATE, Intrinsic, statements_of

PARAMETERS: dict[str, Any] = TEMPLATE["Parameters"]
RESOURCES: dict[str, dict[str, Any]] = TEMPLATE["Resources"]
FUNCTIONS = {name: resource for name, resource in RESOURCES.items() if resource["Type"] == "AWS::Serverless::Function"}
CONTAINER: dict[str, Any] = RESOURCES["BaseComponent"]["Properties"]["Specification"]["Container"]
_IS_VLLM, _OF_VLLM, _OF_LMI = CONTAINER["Environment"].value
ENVIRONMENTS: dict[str, dict[str, Any]] = {"vllm": _OF_VLLM, "lmi": _OF_LMI}
# What https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html asks for; the local cloud delivers no logs.
LOG_DELIVERY = {
    "logs:CreateLogDelivery",
    "logs:CreateLogStream",
    "logs:GetLogDelivery",
    "logs:UpdateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutLogEvents",
    "logs:PutResourcePolicy",
    "logs:DescribeResourcePolicies",
    "logs:DescribeLogGroups",
}


def test_container_and_validator_take_rank_from_one_parameter() -> None:
    validator = FUNCTIONS["ValidateAdapterFunction"]["Properties"]["Environment"]["Variables"]
    assert ENVIRONMENTS["lmi"]["OPTION_MAX_LORA_RANK"] == validator["MAX_LORA_RANK"]
    assert ENVIRONMENTS["vllm"]["SM_VLLM_MAX_LORA_RANK"] == validator["MAX_LORA_RANK"]
    assert validator["MAX_LORA_RANK"] == Intrinsic("Ref", "MaxLoraRank")


def test_each_kind_of_container_gets_the_same_engine_options_under_its_own_names() -> None:
    assert PARAMETERS["ContainerKind"]["AllowedValues"] == [kind.value for kind in ContainerKind] == ["lmi", "vllm"]
    assert _IS_VLLM == "IsVllmContainer"
    options = {
        kind: {
            name.removeprefix(prefix): value for name, value in ENVIRONMENTS[kind].items() if name.startswith(prefix)
        }
        for kind, prefix in (("lmi", "OPTION_"), ("vllm", "SM_VLLM_"))
    }
    engine = ("TENSOR_PARALLEL_", "MAX_MODEL_LEN", "ENABLE_LORA", "MAX_LORAS", "MAX_CPU_LORAS", "MAX_LORA_RANK")
    shared = [
        {name.removesuffix("DEGREE").removesuffix("SIZE"): value for name, value in one.items()}
        for one in options.values()
    ]
    for name in engine:
        assert shared[0][name] == shared[1][name]
    # vLLM's own words: "Only the requests fail" without it.
    assert ENVIRONMENTS["vllm"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "true"
    assert all(len(environment) <= 16 for environment in ENVIRONMENTS.values())  # CloudFormation's limit
    smoke_test = FUNCTIONS["SmokeTestAdapterFunction"]["Properties"]["Environment"]["Variables"]
    assert smoke_test["CONTAINER_KIND"] == Intrinsic("Ref", "ContainerKind")


def test_the_containers_registry_is_known_in_every_region_of_the_default_instance() -> None:
    regions = TEMPLATE["Mappings"]["ContainerRegistry"]
    assert all(len(one["Account"]) == 12 and one["Account"].isdigit() for one in regions.values())
    assert regions["us-east-1"]["Account"] == regions["eu-central-1"]["Account"] == "763104351884"
    assert {"eu-south-1", "eu-central-2", "il-central-1", "ap-east-1"} <= regions.keys()


def test_the_defaults_of_the_base_fit_each_other() -> None:
    profile = load_profile(PARAMETERS["BaseProfile"]["Default"])
    assert PARAMETERS["ModelId"]["Default"] in profile.base_model_names
    assert PARAMETERS["MaxLoraRank"]["Default"] == profile.max_lora_rank
    assert PARAMETERS["EngineVersion"]["Default"] == profile.engine_version == DEFAULT_ENGINE_VERSION
    assert "lmi28" in str(CONTAINER["Image"])


def test_nothing_of_the_base_is_made_beside_an_existing_one() -> None:
    of_sagemaker = {name for name, one in RESOURCES.items() if one["Type"].startswith("AWS::SageMaker::")}
    assert of_sagemaker == {"EndpointConfig", "Endpoint", "BaseComponent"}
    assert all(RESOURCES[name]["Condition"] == "MakeBase" for name in of_sagemaker | {"EndpointExecutionRole"})


def test_the_hub_token_is_referred_to_and_never_written() -> None:
    token = ENVIRONMENTS["lmi"]["HF_TOKEN"]
    assert token == ENVIRONMENTS["vllm"]["HF_TOKEN"]
    assert token.name == "If"
    assert token.value[1] == Intrinsic("Sub", "{{resolve:secretsmanager:${HubTokenSecretArn}}}")
    assert "token" not in str([one["Properties"].get("Environment") for one in FUNCTIONS.values()]).lower()


@pytest.mark.parametrize("name", ["UploadBucket", "ReleaseBucket"])
def test_a_bucket_is_versioned_private_encrypted_and_forgets_old_versions(name: str) -> None:
    bucket = RESOURCES[name]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["BucketEncryption"]
    assert any("NoncurrentVersionExpiration" in rule for rule in bucket["LifecycleConfiguration"]["Rules"])
    policy = RESOURCES[f"{name}Policy"]["Properties"]["PolicyDocument"]["Statement"]
    assert any(one["Sid"] == "TlsOnly" and one["Effect"] == "Deny" for one in policy if isinstance(one, dict))


def test_functions_share_runtime_code_and_build() -> None:
    shared = TEMPLATE["Globals"]["Function"]
    assert (shared["Runtime"], shared["Architectures"]) == ("python3.13", ["arm64"])
    assert shared["CodeUri"] == "functions/"
    for name, function in FUNCTIONS.items():
        assert function["Metadata"] == {"BuildMethod": "python-uv"}, name
        module = function["Properties"]["Handler"].partition(".")[0]
        assert Path(f"functions/{module}.py").is_file()


def test_the_state_machine_may_deliver_its_logs() -> None:
    [deliver] = [one for one in statements_of("DeployAdapter") if one["Sid"] == "DeliverLogs"]
    assert set(deliver["Action"]) == LOG_DELIVERY


@pytest.mark.parametrize("role", [*FUNCTIONS, "DeployAdapter", "EndpointExecutionRole"])
def test_a_statement_has_a_name_and_no_wildcard_action(role: str) -> None:
    statements = statements_of(role)
    assert statements
    for one in statements:
        assert one["Sid"]
        actions = one["Action"] if isinstance(one["Action"], list) else [one["Action"]]
        assert not any("*" in action for action in actions)


def test_every_environment_of_samconfig_says_where_it_deploys() -> None:
    config = tomllib.loads(Path("samconfig.toml").read_text())
    names = {config[environment]["deploy"]["parameters"]["stack_name"] for environment in ("local", "dev", "prod")}
    assert len(names) == 3
    for environment in ("local", "dev", "prod"):
        overrides = config[environment]["deploy"]["parameters"]["parameter_overrides"]
        assert {pair.partition("=")[0] for pair in overrides.split()} <= PARAMETERS.keys()


# The dashboard and its alarms

HANDLERS = Path(loradrop.__file__).parents[1].glob("*.py")
ALARMS = {name for name, one in RESOURCES.items() if one["Type"] == "AWS::CloudWatch::Alarm"}
# What the functions write; Adapter… and Repair… by outcome and by repair.
OWN_METRICS = {
    *(f"Adapter{outcome.capitalize()}" for outcome in Outcome),
    *(f"Repair{repair.capitalize()}" for repair in Repair),
    *re.findall(r'(?:add_metric\(\s*name=|count_by\()"(\w+)"', "".join(one.read_text() for one in HANDLERS)),
}
# https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html and Step Functions' page on CloudWatch
AWS_METRICS = {
    "AWS/SageMaker": {"Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency"},
    "/aws/sagemaker/InferenceComponents": {
        "GPUUtilizationNormalized",
        "GPUMemoryUtilizationNormalized",
        "MemoryUtilizationNormalized",
    },
    "AWS/States": {"ExecutionsStarted", "ExecutionsFailed", "ExecutionsTimedOut"},
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible"},
    "loradrop": OWN_METRICS,
}
# https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
WIDGET_PROPERTIES = {
    "text": {"markdown"},
    "alarm": {"title", "alarms"},
    "metric": {"title", "region", "view", "stat", "period", "metrics", "stacked", "yAxis"},
}


def widgets() -> list[dict[str, Any]]:
    text, names = RESOURCES["Dashboard"]["Properties"]["DashboardBody"].value
    for name in re.findall(r"\$\{([\w:.]+)\}", text):
        resource = name.partition(".")[0]
        assert name in names or resource in RESOURCES or name.startswith("AWS::"), name
    found: list[dict[str, Any]] = json.loads(text)["widgets"]
    return found


def test_the_dashboard_is_whole_and_shows_what_is_written() -> None:
    taken: set[tuple[int, int]] = set()
    for widget in widgets():
        assert widget["properties"].keys() <= WIDGET_PROPERTIES[widget["type"]]
        cells = {
            (widget["x"] + column, widget["y"] + row)
            for column in range(widget["width"])
            for row in range(widget["height"])
        }
        assert max(column for column, _ in cells) < 24
        assert not cells & taken, f"{widget['properties'].get('title')} lies on another"
        taken |= cells
        for namespace, metric, *_ in (one for one in widget["properties"].get("metrics", []) if len(one) > 1):
            assert metric in AWS_METRICS[namespace], metric
        for metric in re.findall(r'MetricName="(\w+)"', str(widget).replace('\\"', '"')):
            assert metric in AWS_METRICS["AWS/SageMaker"] | {"Problem"}
    assert len(taken) == 24 * (1 + max(row for _, row in taken)), "no gaps"
    [shown] = [widget["properties"]["alarms"] for widget in widgets() if widget["type"] == "alarm"]
    assert {one.removeprefix("${").removesuffix(".Arn}") for one in shown} == ALARMS


@pytest.mark.parametrize("name", sorted(ALARMS))
def test_an_alarm_is_on_a_metric_that_is_written_reaches_the_topic_and_has_a_line_in_the_runbook(name: str) -> None:
    alarm = RESOURCES[name]["Properties"]
    assert alarm["MetricName"] in AWS_METRICS[alarm["Namespace"]]
    assert alarm["AlarmActions"] == [Intrinsic("Ref", "NotificationTopic")]
    assert f"| `{name}` |" in Path("docs/operations.md").read_text()


def test_a_topics_policy_lets_rules_in_without_a_condition() -> None:
    """https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-use-resource-based.html: conditions can't be used there."""
    statements = RESOURCES["NotificationTopicPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    [of_rules] = [one for one in statements if one["Principal"] == {"Service": "events.amazonaws.com"}]
    assert (of_rules["Effect"], of_rules["Action"]) == ("Allow", "sns:Publish")
    assert "Condition" not in of_rules
