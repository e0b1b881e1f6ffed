"""What every handler has: the logger, the metrics, its settings, and how its clients time out."""

import os

from aws_lambda_powertools import Logger, Metrics, single_metric
from aws_lambda_powertools.metrics import MetricUnit
from botocore.config import Config

# Named by the template: POWERTOOLS_SERVICE_NAME, POWERTOOLS_METRICS_NAMESPACE.
logger = Logger()
metrics = Metrics()

# Most functions have 60 s: a call that hangs must end before that, so that the fault is named and not a time-out.
CLIENT_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 4}, connect_timeout=3, read_timeout=10)
# SageMaker's throttles are retried by the state machine, where the console shows them.
SAGEMAKER_CONFIG = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=40)
# InvokeEndpoint may take 60 s; the smoke test's function has 900.
INVOKE_CONFIG = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=65)
# A copy of some gigabytes within S3 takes minutes, and S3 sends spaces meanwhile.
COPY_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 2}, connect_timeout=5, read_timeout=120)


def setting(name: str) -> str:
    """A setting that the template gives this function. Raises KeyError if the template forgot it."""
    return os.environ[name]


def count_by(name: str, dimension: str, value: str) -> None:
    """Counts one of the metric with a dimension beside the service."""
    service = {"service": setting("POWERTOOLS_SERVICE_NAME")}
    with single_metric(name=name, unit=MetricUnit.Count, value=1, default_dimensions=service) as metric:
        metric.add_dimension(name=dimension, value=value)
