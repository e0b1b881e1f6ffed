"""What can go wrong, each with a sentence for the reader; and AWS's own errors as such sentences."""

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as botocore
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError


class LoradropError(Exception):
    """Any failure of this package."""


class StackNotFoundError(LoradropError):
    """There is no such stack here, or it is not a loradrop stack."""


class AccessRefusedError(LoradropError):
    """Credentials are missing, expired or unknown, a permission is missing, or this machine's clock is wrong."""


class AwsUnavailableError(LoradropError):
    """AWS could not be reached, or its answer made no sense."""


class NoLiveComponentError(LoradropError):
    """No component of this adapter is live: it was never deployed, or was removed."""


class ModelError(LoradropError):
    """The model server, or SageMaker in front of it, does not answer this request.

    `status` is the HTTP status, if there is one; `said` is what it answered, in its own words.
    """

    def __init__(self, message: str, status: int | None = None, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said


class ModelNotReadyError(ModelError):
    """Not ready until the deadline: the model is loading or full, or calls are throttled."""


class RequestRefusedError(ModelError):
    """The model server refuses this request, and would do so again: the request is bad."""


class ComponentBrokenError(ModelError):
    """SageMaker does not call the component that the live pointer names: if it is missing or Failed, it is being healed."""


class StreamBrokenError(ModelError):
    """The answer broke off after it had begun. What came is incomplete; a stream is not retried."""


_NO_CREDENTIALS = (botocore.NoCredentialsError, botocore.NoAuthTokenError)
_BAD_CREDENTIALS = (
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.TokenRetrievalError,
    botocore.SSOError,
    botocore.ProfileNotFound,
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_UNKNOWN_KEY_CODES = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
# The last is the answer to a HEAD, which has no body.
_DENIED_CODES = frozenset(
    {"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "NotAuthorized", "UnauthorizedOperation", "403"}
)
# A signature holds the time: AWS refuses one that is minutes off.
_CLOCK_CODE, _CLOCK_SENTENCES = "RequestTimeTooSkewed", ("Signature expired", "Signature not yet current")
HOW_TO_SIGN_IN = "name a profile in AWS_PROFILE, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure` or `aws sso login`"


# What a call can raise. The last, which is none of the first: another server than AWS answered.
AWS_ERRORS = (BotoCoreError, ClientError, ResponseParserError)


def explained(error: Exception, doing: str) -> LoradropError:
    """An error of boto3 as one of ours. `doing` is what was tried, as in "could not read the stack acme".

    One of AWS_ERRORS, or the ValueError that boto3 raises of an endpoint that is no URL.
    """
    if isinstance(error, ClientError):
        return _answered(error, doing)
    if isinstance(error, _NO_CREDENTIALS):
        return AccessRefusedError(f"Could not {doing}: there are no AWS credentials here; {HOW_TO_SIGN_IN}.")
    if isinstance(error, _BAD_CREDENTIALS):
        return AccessRefusedError(f"Could not {doing}: {_sentence(error)} To sign in, {HOW_TO_SIGN_IN}.")
    if isinstance(error, botocore.NoRegionError):
        return AwsUnavailableError(
            f"Could not {doing}: no AWS region is set; set AWS_DEFAULT_REGION, or run `aws configure set region`."
        )
    if isinstance(error, (botocore.ConnectionError, botocore.HTTPClientError, ResponseParserError, ValueError)):
        # What a parser says holds the whole page.
        said = "the answer is not from AWS." if isinstance(error, ResponseParserError) else _sentence(error)
        return AwsUnavailableError(f"Could not {doing}: {said} Check the network, the region and AWS_ENDPOINT_URL.")
    return AwsUnavailableError(f"Could not {doing}: {_sentence(error)}")


@contextmanager
def explaining(doing: str) -> Iterator[None]:
    """Raises what AWS refuses inside as one of ours: `explained`."""
    try:
        yield
    except AWS_ERRORS as error:
        raise explained(error, doing) from error


def _answered(error: ClientError, doing: str) -> LoradropError:
    code, said = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    if code == _CLOCK_CODE or said.startswith(_CLOCK_SENTENCES):
        return AccessRefusedError(
            f"Could not {doing}: this machine's clock is wrong; set it ({code}: {_sentence(said)})"
        )
    if code in _EXPIRED_CODES:
        return AccessRefusedError(f"Could not {doing}: the AWS credentials have expired; sign in again ({code}).")
    if code in _UNKNOWN_KEY_CODES:
        # What AWS says here may quote the key.
        return AccessRefusedError(
            f"Could not {doing}: AWS does not know these credentials ({code}). Are they whole, and for this account? "
            f"Else {HOW_TO_SIGN_IN}."
        )
    if code in _DENIED_CODES:
        return AccessRefusedError(
            f"Could not {doing}: AWS refused {error.operation_name}: {_sentence(said)} "
            "docs/operations.md has the policies for pushing, for invoking and for operating."
        )
    return AwsUnavailableError(f"Could not {doing}: {error.operation_name} answered {code}: {_sentence(said)}")


def _sentence(said: object) -> str:
    text = str(said).strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
