"""The errors of the hosting emulator, with the codes and the words of SageMaker's own."""

from moto.sagemaker.exceptions import SagemakerClientError


class ValidationException(SagemakerClientError):  # type: ignore[misc]
    code = "ValidationException"


class ThrottlingException(SagemakerClientError):  # type: ignore[misc]
    code = "ThrottlingException"

    def __init__(self) -> None:
        super().__init__("Rate exceeded")


class ResourceLimitExceeded(SagemakerClientError):  # type: ignore[misc]
    code = "ResourceLimitExceeded"


class InvocationError(Exception):
    """An answer of the runtime that is no success: `code` and `status` as botocore's model of sagemaker-runtime has them."""

    def __init__(self, code: str, status: int, message: str, **members: str | int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.message = message
        self.members = members


class ContainerError(Exception):
    """What the model server inside the container answers instead of a result: its HTTP status and its body."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
