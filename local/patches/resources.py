"""CloudFormation's resource types that MiniStack does not have."""

import functools
from enum import Enum
from typing import Any

from ministack.services.cloudformation import _stacks as known_stacks
from ministack.services.cloudformation import provisioners, stacks
from moto.applicationautoscaling import models as moto_autoscaling
from moto.applicationautoscaling import responses as moto_autoscaling_responses

from .. import cloudformation


def know_sagemaker_resources() -> None:
    """MiniStack has no SageMaker and no application auto scaling; its registry of resource types is a dictionary."""
    runs_on_worker_thread = stacks._runs_on_worker_thread

    @functools.wraps(runs_on_worker_thread)
    def runs_on_worker_thread_too(resource_type: str) -> bool:
        # They wait for a component to come up, and they call this very server.
        return resource_type in cloudformation.RESOURCE_TYPES or runs_on_worker_thread(resource_type)

    stacks._runs_on_worker_thread = runs_on_worker_thread_too
    for name, resource_type in cloudformation.RESOURCE_TYPES.items():
        provisioners._RESOURCE_HANDLERS[name] = resource_type.handlers()
        provisioners._REPLACING_PROPERTIES[name] = resource_type.replacing
        if resource_type.is_tagged:
            provisioners._STACK_TAG_PROPERTY[name] = ("Tags", "list")


def scale_inference_components() -> None:
    """moto's list of what can be scaled, which its requests are checked by, is from before inference components."""
    known = {member.name: member.value for member in moto_autoscaling.ScalableDimensionValueSet}
    known["SAGEMAKER_INFERENCE_COMPONENT"] = "sagemaker:inference-component:DesiredCopyCount"
    extended = Enum("ScalableDimensionValueSet", known)  # type: ignore[misc]  # its members are moto's
    moto_autoscaling.ScalableDimensionValueSet = extended
    moto_autoscaling_responses.ScalableDimensionValueSet = extended


def keep_what_a_failed_resource_needs() -> None:
    """Where a deletion fails, CloudFormation leaves alone what that resource depends on; MiniStack deletes it all the same."""
    delete = stacks._delete_resource

    @functools.wraps(delete)
    def delete_unless_needed(
        kind: str, physical_id: str, properties: Any, stack_name: str | None = None, logical_id: str | None = None
    ) -> Any:
        stack = known_stacks.get(stack_name) or {}
        if stack.get("StackStatus") == "DELETE_IN_PROGRESS":
            resources, definitions = stack.get("_resources", {}), (stack.get("_template") or {}).get("Resources", {})
            # Dependents are deleted first, so one that failed before and is well now is not among these.
            failed = {name for name, one in resources.items() if one.get("ResourceStatus") == "DELETE_FAILED"}
            for name in sorted(failed - {logical_id}):
                if logical_id in stacks._with_dependencies([name], definitions, set(resources)):
                    raise ValueError(f"{name} needs it, and could not be deleted.")
        return delete(kind, physical_id, properties, stack_name, logical_id)

    stacks._delete_resource = delete_unless_needed
