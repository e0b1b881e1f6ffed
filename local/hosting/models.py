"""State of the hosting emulator: moto's SageMaker backend, with inference components and what they need of endpoints."""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from moto.core.utils import utcnow
from moto.sagemaker.models import FakeEndpoint, FakeEndpointConfig, SageMakerModelBackend, sagemaker_backends

from ..engines import AdapterLoadError, Engine, EngineDiedError, EngineState, UnknownAdapterError
from . import lmi
from .behaviour import CONTROL
from .errors import (
    ContainerError,
    InvocationError,
    ResourceLimitExceeded,
    ThrottlingException,
    ValidationException,
)
from .serving import SERVING
from .validation import check_request, service_model

MAX_FAILURE_REASON = 1024
DYNAMIC_LOADING_VARIABLE = "SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY"
# What an adapter takes from its base and must not bring itself.
BASE_ONLY_MEMBERS = (
    "ModelName",
    "ComputeResourceRequirements",
    "StartupParameters",
    "DataCacheConfig",
    "SchedulingConfig",
)

NO_CAPACITY = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress (if configured) "
    "or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)

_generations = itertools.count(1)


class ComponentStatus(StrEnum):
    CREATING = "Creating"
    UPDATING = "Updating"
    IN_SERVICE = "InService"
    FAILED = "Failed"
    DELETING = "Deleting"


@dataclass(slots=True, eq=False)
class InferenceComponent:
    name: str
    arn: str
    endpoint_name: str
    endpoint_arn: str
    variant_name: str
    specification: dict[str, Any]
    copy_count: int | None
    tags: list[dict[str, str]]
    status: ComponentStatus
    settles_at: float
    fails_with: str | None
    loads_lazily: bool
    creation_time: datetime
    last_modified_time: datetime
    failure_reason: str | None = None
    # The engine's name for the loaded adapter: a new one for every load, since a component may return under its old name.
    slot: str | None = None
    # What its base's container runs. If it dies, the base and all its adapters are down.
    engine: Engine | None = None
    # Its base was updated, and the new container has never heard of it.
    is_forgotten: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def base_name(self) -> str | None:
        name: str | None = self.specification.get("BaseInferenceComponentName")
        return name

    @property
    def artifact_url(self) -> str | None:
        url: str | None = self.specification.get("Container", {}).get("ArtifactUrl")
        return url

    def move_to(self, status: ComponentStatus, failure_reason: str | None = None) -> None:
        self.status = status
        self.failure_reason = failure_reason[:MAX_FAILURE_REASON] if failure_reason else None
        self.last_modified_time = utcnow()

    def summary(self) -> dict[str, Any]:
        return {
            "CreationTime": self.creation_time,
            "InferenceComponentArn": self.arn,
            "InferenceComponentName": self.name,
            "EndpointArn": self.endpoint_arn,
            "EndpointName": self.endpoint_name,
            "VariantName": self.variant_name,
            "InferenceComponentStatus": str(self.status),
            "LastModifiedTime": self.last_modified_time,
        }

    def description(self) -> dict[str, Any]:
        described = self.summary() | {"Specification": self._specification_summary()}
        if self.copy_count is not None:
            current = self.copy_count if self.status is ComponentStatus.IN_SERVICE else 0
            described["RuntimeConfig"] = {"DesiredCopyCount": self.copy_count, "CurrentCopyCount": current}
        if self.failure_reason:
            described["FailureReason"] = self.failure_reason
        return described

    def _specification_summary(self) -> dict[str, Any]:
        """As requested, but for the image: a description says which one it became."""
        summary = dict(self.specification)
        if "Container" in summary:
            container = dict(summary["Container"])
            image = container.pop("Image", None)
            if image:
                container["DeployedImage"] = {
                    "SpecifiedImage": image,
                    "ResolvedImage": image,
                    "ResolutionTime": self.creation_time,
                }
            summary["Container"] = container
        return summary


class HostingEndpointConfig(FakeEndpointConfig):  # type: ignore[misc]
    """moto's, for any instance type that botocore's model knows and for variants without a model."""

    def __init__(self, *, execution_role_arn: str | None, **moto_fields: Any) -> None:
        super().__init__(**moto_fields)
        self.execution_role_arn = execution_role_arn

    def validate_production_variants(self, production_variants: list[dict[str, Any]]) -> None:
        """The request was checked by the model already; moto's own list of instance types is from before g5."""

    @property
    def response_object(self) -> dict[str, Any]:
        response: dict[str, Any] = super().response_object
        return {name: value for name, value in response.items() if name not in ("Arn", "Tags")}

    @property
    def is_for_components(self) -> bool:
        return all("ModelName" not in variant for variant in self.production_variants)


class HostingBackend(SageMakerModelBackend):  # type: ignore[misc]
    def __init__(self, region_name: str, account_id: str) -> None:
        super().__init__(region_name, account_id)
        self.inference_components: dict[str, InferenceComponent] = {}
        # Guards the dictionary and what must be decided in one piece; a component's own lock guards its life cycle.
        self._components_lock = threading.RLock()

    # Endpoint configurations and endpoints

    def create_endpoint_config(
        self, execution_role_arn: str | None = None, **moto_fields: Any
    ) -> HostingEndpointConfig:
        name, variants = moto_fields["endpoint_config_name"], moto_fields["production_variants"]
        if name in self.endpoint_configs:
            arn = self._arn("endpoint-config", name)
            raise ValidationException(f'Cannot create already existing endpoint configuration "{arn}".')
        named = [variant["ModelName"] for variant in variants if "ModelName" in variant]
        if named and len(named) < len(variants):
            raise ValidationException("Either all or none of the production variants must specify a ModelName.")
        if not named and not execution_role_arn:
            raise ValidationException(
                "ExecutionRoleArn is required when the production variants of the endpoint configuration specify no ModelName."
            )
        for model_name in named:
            self.describe_model(model_name)
        config = HostingEndpointConfig(
            account_id=self.account_id,
            region_name=self.region_name,
            execution_role_arn=execution_role_arn,
            **moto_fields,
        )
        self.endpoint_configs[name] = config
        return config

    def create_endpoint(
        self, endpoint_name: str, endpoint_config_name: str, tags: list[dict[str, str]]
    ) -> FakeEndpoint:
        if endpoint_name in self.endpoints:
            raise ValidationException(
                f'Cannot create already existing endpoint "{self._arn("endpoint", endpoint_name)}".'
            )
        endpoint = super().create_endpoint(
            endpoint_name=endpoint_name, endpoint_config_name=endpoint_config_name, tags=tags
        )
        self._describe_variants(endpoint, endpoint_config_name)
        return endpoint

    def describe_endpoint(self, endpoint_name: str) -> dict[str, Any]:
        """moto's, without what is not set: SageMaker leaves that out."""
        described: dict[str, Any] = super().describe_endpoint(endpoint_name)
        return {name: value for name, value in described.items() if value not in (None, {}, [])}

    def update_endpoint(self, endpoint_name: str, endpoint_config_name: str) -> FakeEndpoint:
        endpoint = self._endpoint(endpoint_name)
        config = self.describe_endpoint_config(endpoint_config_name)
        endpoint.endpoint_config_name = endpoint_config_name
        endpoint.production_variants = endpoint._process_production_variants(config["ProductionVariants"])
        endpoint.last_modified_time = utcnow()
        self._describe_variants(endpoint, endpoint_config_name)
        return endpoint

    def _describe_variants(self, endpoint: FakeEndpoint, endpoint_config_name: str) -> None:
        """Adds what moto leaves out of a variant and a console shows."""
        configured = self.endpoint_configs[endpoint_config_name].production_variants
        for variant, wanted in zip(endpoint.production_variants, configured, strict=True):
            for member in ("ManagedInstanceScaling", "RoutingConfig"):
                if member in wanted:
                    variant[member] = wanted[member]

    def delete_endpoint(self, endpoint_name: str) -> None:
        with self._components_lock:
            hosted = [component.name for component in self._components_of(endpoint_name)]
            if hosted:
                raise ValidationException(
                    f'Cannot delete endpoint "{self._arn("endpoint", endpoint_name)}": '
                    f"it hosts the inference components {', '.join(hosted)}. Delete them first."
                )
            super().delete_endpoint(endpoint_name)

    def _endpoint(self, endpoint_name: str) -> FakeEndpoint:
        try:
            return self.endpoints[endpoint_name]
        except KeyError:
            arn = self._arn("endpoint", endpoint_name)
            raise ValidationException(f'Could not find endpoint "{arn}".') from None

    # Inference components

    def create_inference_component(self, request: dict[str, Any]) -> InferenceComponent:
        check_request("CreateInferenceComponent", request)
        behaviour = CONTROL.behaviour
        if not CONTROL.creates.allows(behaviour.creates_per_second):
            raise ThrottlingException
        endpoint = self._endpoint(request["EndpointName"])
        name, specification = request["InferenceComponentName"], request.get("Specification")
        arn = self._arn("inference-component", name)
        if not specification:
            raise ValidationException("Specification is required to create an inference component.")
        with self._components_lock:
            if self._found(name) is not None:
                raise ValidationException(f'Cannot create already existing inference component "{arn}".')
            if "BaseInferenceComponentName" in specification:
                environment = self._checked_adapter(request, endpoint)
            else:
                self._check_base(specification, endpoint)
                environment = {}
            hosted = len(list(self._components_of(endpoint.endpoint_name)))
            limit = behaviour.components_per_endpoint
            if limit is not None and hosted >= limit:
                raise ResourceLimitExceeded(
                    f"The account-level service limit 'Number of inference components per endpoint' is {limit} Components, "
                    f"with current utilization of {hosted} Components and a request delta of 1 Components. "
                    "Please use AWS Service Quotas to request an increase for this quota."
                )
            is_adapter = "BaseInferenceComponentName" in specification
            lazily = is_adapter and (behaviour.dynamic_loading or DYNAMIC_LOADING_VARIABLE in environment)
            now = utcnow()
            component = InferenceComponent(
                name=name,
                arn=arn,
                endpoint_name=endpoint.endpoint_name,
                endpoint_arn=endpoint.arn,
                variant_name=self._variant_name(request, endpoint),
                specification=specification,
                copy_count=None if is_adapter else request.get("RuntimeConfig", {}).get("CopyCount", 1),
                tags=request.get("Tags", []),
                status=ComponentStatus.CREATING,
                settles_at=time.monotonic() + (0 if lazily else behaviour.seconds_to_in_service),
                fails_with=behaviour.create_fails,
                loads_lazily=lazily,
                creation_time=now,
                last_modified_time=now,
            )
            self.inference_components[name] = component
            return component

    def describe_inference_component(self, name: str) -> InferenceComponent:
        check_request("DescribeInferenceComponent", {"InferenceComponentName": name})
        if not CONTROL.describes.allows(CONTROL.behaviour.describes_per_second):
            raise ThrottlingException
        return self._component(name)

    def list_inference_components(self) -> list[InferenceComponent]:
        with self._components_lock:
            names = list(self.inference_components)
        return [component for name in names if (component := self._found(name)) is not None]

    def update_inference_component(self, request: dict[str, Any]) -> InferenceComponent:
        check_request("UpdateInferenceComponent", request)
        component = self._component(request["InferenceComponentName"])
        with component.lock:
            self._check_idle(component)
            specification = request.get("Specification", {})
            if specification.get("BaseInferenceComponentName", component.base_name) != component.base_name:
                raise ValidationException("BaseInferenceComponentName cannot be changed by an update.")
            if component.base_name is not None and specification:
                self._check_adapter_specification(specification)
            self._set_copy_count(component, request.get("RuntimeConfig"))
            component.specification = component.specification | specification
            # Unregistered first and registered again after: nothing answers in between, as AWS's own logs show.
            self._unload(component)
            component.is_forgotten = False
            self._renew_container(component)
            component.fails_with = CONTROL.behaviour.create_fails
            component.settles_at = time.monotonic() + CONTROL.behaviour.seconds_to_in_service
            component.move_to(ComponentStatus.UPDATING)
        return component

    def update_inference_component_runtime_config(self, request: dict[str, Any]) -> InferenceComponent:
        check_request("UpdateInferenceComponentRuntimeConfig", request)
        component = self._component(request["InferenceComponentName"])
        with component.lock:
            self._check_idle(component)
            self._set_copy_count(component, request["DesiredRuntimeConfig"])
            if component.copy_count == 0:
                self._renew_container(component)
            component.settles_at = time.monotonic() + CONTROL.behaviour.seconds_to_in_service
            component.move_to(ComponentStatus.UPDATING)
        return component

    def delete_inference_component(self, name: str) -> None:
        check_request("DeleteInferenceComponent", {"InferenceComponentName": name})
        with self._components_lock:
            component = self._component(name)
            adapters = [other.name for other in self.list_inference_components() if other.base_name == name]
            if adapters:
                raise ValidationException(
                    f'Cannot delete inference component "{component.arn}": it is a base inference component '
                    f"of the inference components {', '.join(sorted(adapters))}."
                )
            with component.lock:
                if component.status is ComponentStatus.DELETING:
                    raise ValidationException(
                        f'Cannot delete inference component "{component.arn}": its status is DELETE_IN_PROGRESS.'
                    )
                if component.status in (ComponentStatus.CREATING, ComponentStatus.UPDATING):
                    state = "UPDATE_RC" if component.status is ComponentStatus.UPDATING else "CREATE"
                    raise ValidationException(
                        f'Cannot delete inference component "{component.arn}": its status is {state}_IN_PROGRESS.'
                    )
                component.settles_at = time.monotonic() + CONTROL.behaviour.seconds_to_delete
                component.move_to(ComponentStatus.DELETING)
                self._unload(component)
            self._settle(component)

    def _checked_adapter(self, request: dict[str, Any], endpoint: FakeEndpoint) -> dict[str, str]:
        """Checks an adapter's request by the rules; the environment of its base comes back."""
        specification = request["Specification"]
        base = self._component(specification["BaseInferenceComponentName"])
        if base.base_name is not None:
            raise ValidationException(f'Inference component "{base.arn}" is an adapter and cannot be a base.')
        if base.endpoint_name != endpoint.endpoint_name:
            raise ValidationException(
                f'Base inference component "{base.arn}" is on the endpoint {base.endpoint_name}, not on {endpoint.endpoint_name}.'
            )
        if base.status is not ComponentStatus.IN_SERVICE:
            raise ValidationException(f'Base inference component "{base.arn}" is {base.status}, not InService.')
        if "RuntimeConfig" in request:
            raise ValidationException("RuntimeConfig is not supported when BaseInferenceComponentName is specified.")
        self._check_adapter_specification(specification)
        return self._environment(base)

    @staticmethod
    def _check_adapter_specification(specification: dict[str, Any]) -> None:
        refused = [member for member in BASE_ONLY_MEMBERS if member in specification]
        if refused:
            raise ValidationException(
                f"{', '.join(refused)} cannot be specified together with BaseInferenceComponentName: "
                "an adapter takes them from its base inference component."
            )
        container = specification.get("Container", {})
        if "ArtifactUrl" not in container:
            raise ValidationException("Container.ArtifactUrl is required when BaseInferenceComponentName is specified.")
        refused = [member for member in ("Image", "Environment") if member in container]
        if refused:
            names = ", ".join(f"Container.{member}" for member in refused)
            raise ValidationException(f"{names} cannot be specified together with BaseInferenceComponentName.")

    def _check_base(self, specification: dict[str, Any], endpoint: FakeEndpoint) -> None:
        config = self.endpoint_configs.get(endpoint.endpoint_config_name)
        if config is not None and not config.is_for_components:
            raise ValidationException(
                f'Endpoint "{endpoint.arn}" cannot host inference components: its production variants specify a ModelName.'
            )
        if ("ModelName" in specification) == ("Container" in specification):
            raise ValidationException(
                "Specify either ModelName or Container in the Specification of an inference component."
            )
        if "ModelName" in specification:
            self.describe_model(specification["ModelName"])
        elif "Image" not in specification["Container"]:
            raise ValidationException(
                "Container.Image is required when neither ModelName nor BaseInferenceComponentName is specified."
            )
        if "ComputeResourceRequirements" not in specification:
            raise ValidationException(
                "ComputeResourceRequirements is required when BaseInferenceComponentName is not specified."
            )

    @staticmethod
    def _variant_name(request: dict[str, Any], endpoint: FakeEndpoint) -> str:
        variants: list[str] = [variant["VariantName"] for variant in endpoint.production_variants]
        wanted: str | None = request.get("VariantName")
        if wanted is None:
            return variants[0]
        if wanted not in variants:
            raise ValidationException(f'Could not find variant "{wanted}" on endpoint "{endpoint.arn}".')
        return wanted

    @staticmethod
    def _check_idle(component: InferenceComponent) -> None:
        if component.status not in (ComponentStatus.IN_SERVICE, ComponentStatus.FAILED):
            raise ValidationException(f'Cannot update in-progress inference component "{component.arn}".')

    @staticmethod
    def _set_copy_count(component: InferenceComponent, runtime_config: dict[str, Any] | None) -> None:
        if runtime_config is None:
            return
        if component.base_name is not None:
            raise ValidationException("RuntimeConfig is not supported when BaseInferenceComponentName is specified.")
        component.copy_count = runtime_config["CopyCount"]

    # The life cycle: a component changes its status when it is read, so that nothing runs behind a test's back

    def _component(self, name: str) -> InferenceComponent:
        component = self._found(name)
        if component is None:
            raise ValidationException(f'Could not find inference component "{self._arn("inference-component", name)}".')
        return component

    def _found(self, name: str) -> InferenceComponent | None:
        component = self.inference_components.get(name)
        if component is not None:
            self._settle(component)
        return self.inference_components.get(name)

    def _settle(self, component: InferenceComponent) -> None:
        with component.lock:
            if time.monotonic() < component.settles_at:
                return
            if component.status is ComponentStatus.DELETING:
                # Somebody who found it earlier may read it late: its name may belong to another by now.
                if self.inference_components.get(component.name) is component:
                    del self.inference_components[component.name]
            elif component.status in (ComponentStatus.CREATING, ComponentStatus.UPDATING):
                self._bring_up(component)
            elif component.name in CONTROL.behaviour.failed_components:
                self._unload(component)
                component.move_to(ComponentStatus.FAILED, "The component failed on request.")
            elif component.engine is not None and component.engine.state is EngineState.DEAD:
                # Whether SageMaker starts such a container anew is not known; an update of the base does.
                component.slot = None
                component.move_to(ComponentStatus.FAILED, f"The container died. {component.engine.last_words}")

    def _bring_up(self, component: InferenceComponent) -> None:
        if component.fails_with is not None:
            component.move_to(ComponentStatus.FAILED, component.fails_with)
            return
        try:
            if component.base_name is None:
                problem = lmi.start_problem(self._environment(component))
                if problem is not None:
                    component.move_to(ComponentStatus.FAILED, f"The container did not start: {problem}")
                    return
                component.engine = component.engine or SERVING.start(self._environment(component))
                if component.engine.state is EngineState.STARTING:
                    return
                if component.engine.state is EngineState.DEAD:
                    words = component.engine.last_words
                    component.move_to(ComponentStatus.FAILED, f"The container did not start: {words}")
                    return
            elif not component.loads_lazily:
                self._load(component)
        except AdapterLoadError as error:
            component.move_to(ComponentStatus.FAILED, f"Failed to load the adapter: {error}")
        except EngineDiedError as error:
            component.move_to(ComponentStatus.FAILED, f"The container died as it loaded the adapter: {error}")
        else:
            component.move_to(ComponentStatus.IN_SERVICE)

    def _load(self, component: InferenceComponent) -> None:
        if component.slot is not None or component.artifact_url is None:
            return
        fault = CONTROL.behaviour.load_fails
        if fault is not None:
            raise AdapterLoadError(fault)
        base = self.inference_components.get(component.base_name or "")
        options = lmi.LoraOptions.of(self._environment(base) if base else {})
        if options.problem is not None:
            raise AdapterLoadError(options.problem)
        slot = f"{component.name}#{next(_generations)}"
        role = self._execution_role(component)
        SERVING.load_adapter(slot, component.artifact_url, role, self.region_name, options.max_rank)
        component.slot, component.engine = slot, SERVING.engine()

    def _renew_container(self, base: InferenceComponent) -> None:
        """An update of a base starts a new container, which has none of the adapters of the old one."""
        for adapter in self.list_inference_components() if base.base_name is None else []:
            if adapter.base_name == base.name:
                with adapter.lock:
                    self._unload(adapter)
                    # Registered anew, it is loaded by the next invocation.
                    adapter.is_forgotten = CONTROL.behaviour.base_update_forgets_adapters
        if base.engine is not None:
            base.engine.close()
            base.engine = None

    @staticmethod
    def _unload(component: InferenceComponent) -> None:
        slot, component.slot = component.slot, None
        if slot is not None and component.engine is not None:
            with contextlib.suppress(EngineDiedError):
                component.engine.unload_adapter(slot)
        component.engine = None

    def _execution_role(self, component: InferenceComponent) -> str | None:
        endpoint = self.endpoints.get(component.endpoint_name)
        config = self.endpoint_configs.get(endpoint.endpoint_config_name) if endpoint is not None else None
        role: str | None = getattr(config, "execution_role_arn", None)
        return role

    # Invocations

    def invoke(
        self, endpoint_name: str, component_name: str | None, body: bytes, *, streamed: bool = False
    ) -> tuple[str, lmi.Answer]:
        """The variant that answered, and its answer: as it is made if `streamed`, else whole. Raises InvocationError."""
        endpoint = self.endpoints.get(endpoint_name)
        if endpoint is None:
            raise _invalid(f"Endpoint {endpoint_name} of account {self.account_id} not found.")
        config = self.endpoint_configs.get(endpoint.endpoint_config_name)
        for_components = config is None or config.is_for_components
        if component_name is None:
            if for_components:
                raise _invalid(
                    "Inference Component Name header is required for endpoints to which you plan to deploy inference components. "
                    "Please include Inference Component Name header or consider using SageMaker models."
                )
            return self._answer_of_model(endpoint, body)
        if not for_components:
            raise _invalid(
                "Inference Component Name header is not allowed for endpoints to which you don't plan to deploy inference "
                "components. Please remove the Inference Component Name header and try again."
            )
        component = self._found(component_name)
        if component is None or component.endpoint_name != endpoint_name:
            raise _invalid(f"Inference Component {component_name} of account {self.account_id} not found.")
        return component.variant_name, self._answer_of(component, body, streamed=streamed)

    def _answer_of_model(self, endpoint: FakeEndpoint, body: bytes) -> tuple[str, lmi.Answer]:
        variant: str = endpoint.production_variants[0]["VariantName"]
        try:
            return variant, lmi.answer(SERVING.engine(), None, body, lmi.Handler.ROLLING_BATCH)
        except ContainerError as error:
            raise self._model_error(error, f"Endpoints/{endpoint.endpoint_name}") from error

    def _answer_of(self, component: InferenceComponent, body: bytes, *, streamed: bool) -> lmi.Answer:
        fault = CONTROL.take_invoke_error(component.name)
        log_group = f"InferenceComponents/{component.base_name or component.name}"
        if fault is not None:
            raise self._injected(fault, log_group)
        with component.lock:
            if component.status is not ComponentStatus.IN_SERVICE:
                raise _invalid(f"Inference Component {component.name} is {component.status}, not InService.")
            base = self._found(component.base_name) if component.base_name else component
            if base is not None and (base.copy_count == 0 or CONTROL.behaviour.no_capacity):
                raise _invalid(NO_CAPACITY)
            if component.is_forgotten:
                refusal = lmi.failure(f"Adapter {component.name} is not registered", 424)
                raise self._model_error(refusal, log_group)
            try:
                if component.base_name is not None:
                    self._load(component)
            except AdapterLoadError as error:
                refusal = lmi.failure(f"Failed to load the adapter {component.name}: {error}", 424)
                raise self._model_error(refusal, log_group) from error
            except EngineDiedError as error:
                raise self._model_error(lmi.failure(str(error), 500), log_group) from error
            adapter = None if CONTROL.behaviour.adapters_ignored else component.slot
        handler = lmi.Handler.of(self._environment(base) if base else {})
        try:
            answer = lmi.answer(SERVING.engine(), adapter, body, handler, model=component.name if adapter else "lmi")
            # The container may send pieces all the same: an invocation that is not streamed waits for the last.
            return answer if streamed else lmi.Answer(answer.content_type, iter((b"".join(answer.chunks),)))
        except ContainerError as error:
            raise self._model_error(error, log_group) from error
        except UnknownAdapterError as error:
            # It was unloaded while this request waited or was answered: deleted, or updated in place.
            raise self._model_error(lmi.failure(str(error), 424), log_group) from error
        except EngineDiedError as error:
            raise self._model_error(lmi.failure(str(error), 500), log_group) from error

    def _injected(self, status: int, log_group: str) -> InvocationError:
        if status == 424:
            body = '{"error": "the model server broke down on request", "code": 500}'
            return self._model_error(ContainerError(500, body), log_group)
        code, message = {
            400: ("ValidationError", "The request was refused on request."),
            429: ("ModelNotReadyException", "The model is not ready to serve the inference request. Please try again."),
            500: ("InternalFailure", "An internal failure occurred."),
            503: ("ServiceUnavailable", "The service is unavailable. Try your call again."),
            530: ("InternalDependencyException", "Your request caused an exception with an internal dependency."),
        }[status]
        return InvocationError(code, status, message)

    def _model_error(self, error: ContainerError, log_group: str) -> InvocationError:
        side = "server" if error.status >= 500 else "client"
        group = f"/aws/sagemaker/{log_group}"
        console = f"https://{self.region_name}.console.aws.amazon.com/cloudwatch/home?region={self.region_name}"
        message = (
            f'Received {side} error ({error.status}) from primary with message "{error.body}". '
            f"See {console}#logEventViewer:group={group} in account {self.account_id} for more information."
        )
        return InvocationError(
            "ModelError",
            424,
            message,
            OriginalStatusCode=error.status,
            OriginalMessage=error.body,
            LogStreamArn=f"arn:{self.partition}:logs:{self.region_name}:{self.account_id}:log-group:{group}",
        )

    # What both need

    def _environment(self, base: InferenceComponent) -> dict[str, str]:
        """Of the base's container, wherever it was said: on the component or on the model."""
        model = self._models.get(base.specification.get("ModelName", ""))
        environment: dict[str, str] = (
            dict(model.primary_container.get("Environment") or {}) if model is not None else {}
        )
        environment |= base.specification.get("Container", {}).get("Environment", {})
        return environment

    def _components_of(self, endpoint_name: str) -> Iterator[InferenceComponent]:
        return (component for component in self.list_inference_components() if component.endpoint_name == endpoint_name)

    def _arn(self, kind: str, name: str) -> str:
        return f"arn:{self.partition}:sagemaker:{self.region_name}:{self.account_id}:{kind}/{name}"

    # Tags

    def _get_resource_from_arn(self, arn: str) -> Any:
        kind, _, name = arn.rpartition(":")[2].partition("/")
        return self._component(name) if kind == "inference-component" else super()._get_resource_from_arn(arn)

    def add_tags(self, arn: str, tags: list[dict[str, str]]) -> list[dict[str, str]]:
        """moto appends; a tag of a key that is there already must replace it."""
        resource = self._get_resource_from_arn(arn)
        merged = {tag["Key"]: tag["Value"] for tag in [*resource.tags, *tags]}
        resource.tags = [{"Key": key, "Value": value} for key, value in merged.items()]
        kept: list[dict[str, str]] = resource.tags
        return kept

    def tags_of(self, arn: str) -> dict[str, str]:
        """Of a component or an endpoint; of what is not there: none. Waits for nothing: no component comes up by this."""
        kind, _, name = arn.rpartition(":")[2].partition("/")
        known: Any = {"inference-component": self.inference_components, "endpoint": self.endpoints}.get(kind, {})
        found = known.get(name)
        if getattr(found, "status", None) is ComponentStatus.DELETING:
            found = self._found(name)
        return {tag["Key"]: tag["Value"] for tag in found.tags or []} if found is not None else {}


def _invalid(message: str) -> InvocationError:
    return InvocationError("ValidationError", 400, message)


def hosting_backend(account_id: str, region: str) -> HostingBackend:
    backend: HostingBackend = sagemaker_backends[account_id][region]
    return backend


INSTANCE_TYPES = frozenset(service_model("sagemaker").shape_for("ProductionVariantInstanceType").metadata["enum"])
