"""SageMaker hosting, emulated: moto's SageMaker with inference components, and endpoints that answer.

Importing it is enough for `mock_aws` to know inference components and invocations; the local cloud serves the same code over HTTP.
State is in models.py, wire in responses.py, as moto does it.
"""

from moto.core.errors import COMMON_ERROR_CODES
from moto.sagemaker.models import sagemaker_backends
from moto.sagemakerruntime import urls as moto_runtime_urls

from .behaviour import CONTROL, Behaviour, Control, InvokeErrors, Kill, Refusal, behaving
from .errors import ThrottlingException
from .models import HostingBackend, hosting_backend
from .serving import SERVING
from .urls import runtime_url_paths

__all__ = [
    "CONTROL",
    "SERVING",
    "Behaviour",
    "Control",
    "HostingBackend",
    "InvokeErrors",
    "Kill",
    "Refusal",
    "behaving",
    "hosting_backend",
    "register",
]


def register() -> None:
    """Puts this backend where moto keeps its own. Doing it twice does no harm."""
    sagemaker_backends.backend = HostingBackend
    moto_runtime_urls.url_paths.update(runtime_url_paths)
    # moto warns of codes that a service's model does not list; AWS throttles every service by this one.
    if ThrottlingException.code not in COMMON_ERROR_CODES:
        COMMON_ERROR_CODES.append(ThrottlingException.code)


register()
