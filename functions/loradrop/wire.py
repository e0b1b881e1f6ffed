"""What AWS's answers mean, for the Lambdas, the command and the client alike: of an invocation, and of S3."""

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
