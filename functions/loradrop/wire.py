"""What AWS's answers mean, for the Lambdas, the command and the client alike: of an invocation, of S3, and about components."""

# 424 is what LMI says while it loads an adapter, and also when it can't: only a bound on the retries decides.
NOT_READY_STATUSES = frozenset({424, 429, 500, 503, 530})
NOT_READY_CODES = frozenset({"ModelNotReadyException", "Throttling", "ThrottlingException", "TooManyRequestsException"})
# A base that was scaled to zero answers 400 with this text until it is awake.
NO_CAPACITY = "no capacity"


# 424 too, but it will be so for ever.
UNREADABLE_REQUEST = "input parsing failed"


def is_not_ready(status: int | None, code: str, message: str) -> bool:
    """Whether asking again in a moment may succeed: the model is loading, full, or waking up."""
    text = message.lower()
    if NO_CAPACITY in text:
        return True
    return code in NOT_READY_CODES or (status in NOT_READY_STATUSES and UNREADABLE_REQUEST not in text)


# S3 says so that there is no such object or version, or that it is a delete marker. A HEAD's answer has only the status.
OBJECT_GONE_CODES = frozenset(
    {"NoSuchKey", "NoSuchVersion", "NoSuchBucket", "404", "NotFound", "MethodNotAllowed", "405"}
)

# What this stack's components carry: its id.
STACK_TAG = "loradrop:stack"
# SageMaker refuses to delete a component that is being made or changed; later it does not.
COMPONENT_BUSY_TEXTS = ("CREATE_IN_PROGRESS", "UPDATE_RC_IN_PROGRESS", "UPDATE_IN_PROGRESS")
COMPONENT_LEAVING_TEXT = "DELETE_IN_PROGRESS"


def is_component_missing(code: str, message: str) -> bool:
    """SageMaker models no error of its own for a component that does not exist."""
    return code == "ValidationException" and "could not find" in message.lower()
