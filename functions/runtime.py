"""What the handlers share: the logger, the metrics, the settings, and the faults that the state machine tells apart.

A fault's class name is its error name in Step Functions, so `statemachine/deploy_adapter.asl.yaml` retries and
catches by these names.
"""

import os

from aws_lambda_powertools import Logger, Metrics
from botocore.config import Config
from botocore.exceptions import ClientError

# Named by the template: POWERTOOLS_SERVICE_NAME, POWERTOOLS_METRICS_NAMESPACE.
logger = Logger()
metrics = Metrics()

CLIENT_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=5, read_timeout=20)
# SageMaker's throttles and cold starts are retried by the state machine, where the console shows them.
# InvokeEndpoint may take 60 s.
SAGEMAKER_CONFIG = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=65)


class Throttled(Exception):  # noqa: N818
    """AWS asked for fewer calls a second."""


class ResourceLimitExceeded(Exception):  # noqa: N818
    """A quota of SageMaker's is used up: components of the endpoint, or of the account."""


class ComponentBusy(Exception):  # noqa: N818
    """The component is being deleted; its name is free again in a moment."""


class ComponentRefused(Exception):  # noqa: N818
    """SageMaker will not make this component, however often it is asked."""


class ComponentFailed(Exception):  # noqa: N818
    """The component's status became Failed; the message holds SageMaker's reason."""


class ComponentNotInServiceInTime(Exception):  # noqa: N818
    """The deadline passed while the component was still being created."""


class ModelNotReady(Exception):  # noqa: N818
    """The model server answers that it can't answer yet: it is loading, or full."""


class InvocationRefused(Exception):  # noqa: N818
    """The model server will not answer this request, however often it is asked."""


class DownloadInterrupted(Exception):  # noqa: N818
    """The connection to S3 broke while an upload was read."""


class ReportContended(Exception):  # noqa: N818
    """Another execution wrote the same report in between."""


def setting(name: str) -> str:
    """A setting that the template gives this function. Raises KeyError if the template forgot it."""
    return os.environ[name]


def error_code(error: ClientError) -> str:
    return error.response["Error"]["Code"]


def error_message(error: ClientError) -> str:
    return error.response["Error"].get("Message", "")
