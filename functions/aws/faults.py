"""The faults that the state machines tell apart: a fault's class name is its error name in Step Functions.

Retry and Catch in statemachine/*.asl.yaml use these names. A rejection is not a fault; it is data.
"""

from botocore.exceptions import ClientError

from loradrop.wire import OBJECT_GONE_CODES

MAX_MESSAGE_CHARACTERS = 1_500


class Fault(Exception):  # noqa: N818
    """Something that AWS, or the model server, did not do. The message is bounded: it travels as a cause."""

    def __init__(self, message: str) -> None:
        super().__init__(message[:MAX_MESSAGE_CHARACTERS])


class Throttled(Fault):
    """AWS asked for fewer calls a second."""


class EndpointFull(Fault):
    """A quota of SageMaker's is used up: components of the endpoint, or of the account."""


class RoomBeingMade(Fault):
    """The endpoint is full, and a component on it is being deleted: the create may succeed in a moment."""


class BaseUpdating(Fault):
    """The base component is being created or updated; adapters can be made when it is in service."""


class ComponentBusy(Fault):
    """SageMaker does not delete a component while it is being created or updated."""


class ComponentRefused(Fault):
    """SageMaker will not make this component, however often it is asked."""


class ComponentFailed(Fault):
    """The component's status became Failed; the message holds SageMaker's reason."""


class ComponentLost(Fault):
    """The attempt's component is being deleted, or is gone: the attempt was given up meanwhile."""


class ComponentNotInServiceInTime(Fault):
    """The deadline passed while the component was still being created."""


class ModelNotReady(Fault):
    """The model server answers that it can't answer yet: it is loading, full, or waking up."""


class InvocationRefused(Fault):
    """The model server will not answer this request, however often it is asked."""


class DownloadInterrupted(Fault):
    """The connection to S3 broke while an upload was read."""


class RegistryContended(Fault):
    """Another execution wrote the adapter's state in between, several times in a row."""


class ReportContended(Fault):
    """Another execution wrote the same report in between."""


class OutcomeNotReported(Fault):
    """The outcome stands in the registry, but not everybody who is to hear of it could be reached."""


_THROTTLES = frozenset({"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded"})


def error_code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


def error_message(error: ClientError) -> str:
    return str(error.response["Error"].get("Message", ""))


def is_object_gone(error: ClientError) -> bool:
    """Whether S3 says that there is no such object or version, or that it is a delete marker."""
    return error_code(error) in OBJECT_GONE_CODES


def raise_if_throttled(error: ClientError) -> None:
    if error_code(error) in _THROTTLES:
        raise Throttled(str(error)) from error
