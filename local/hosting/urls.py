"""Where the hosting emulator listens. moto finds this module beside the state, under this name."""

from moto.sagemaker.urls import url_bases  # noqa: F401

from .responses import HostingResponse, HostingRuntimeResponse

url_paths = {"{0}/$": HostingResponse.dispatch}

runtime_url_paths = {
    "{0}/endpoints/(?P<name>[^/]+)/invocations$": HostingRuntimeResponse.dispatch,
    "{0}/endpoints/(?P<name>[^/]+)/invocations-response-stream$": HostingRuntimeResponse.dispatch,
}
