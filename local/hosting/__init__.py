"""SageMaker hosting, emulated: moto's SageMaker with inference components, and endpoints that answer.

Importing it is enough for `mock_aws` to know inference components and invocations; the local cloud serves the same code over HTTP.
State is in models.py, wire in responses.py, as moto does it.
"""

from moto.sagemaker.models import sagemaker_backends
from moto.sagemakerruntime import urls as moto_runtime_urls

from .behaviour import CONTROL, Behaviour, Control, InvokeErrors, behaving
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
    "behaving",
    "hosting_backend",
    "register",
]


def register() -> None:
    """Puts this backend where moto keeps its own. Doing it twice does no harm."""
    sagemaker_backends.backend = HostingBackend
    moto_runtime_urls.url_paths.update(runtime_url_paths)


register()
