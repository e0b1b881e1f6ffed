"""The template, read for tests: CloudFormation's short forms become values that compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Intrinsic:
    """`!Ref X` is Intrinsic("Ref", "X")."""

    name: str
    value: Any


class _Loader(yaml.SafeLoader):
    pass


def _intrinsic(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Intrinsic:
    if isinstance(node, yaml.SequenceNode):
        return Intrinsic(tag, loader.construct_sequence(node, deep=True))
    if isinstance(node, yaml.MappingNode):
        return Intrinsic(tag, loader.construct_mapping(node, deep=True))
    return Intrinsic(tag, node.value)


_Loader.add_multi_constructor("!", _intrinsic)

TEMPLATE: dict[str, Any] = yaml.load((Path(__file__).parents[1] / "template.yaml").read_text(), Loader=_Loader)


def statements_of(name: str) -> list[dict[str, Any]]:
    """The IAM statements of a function's, a state machine's or a role's own policies; conditional ones are left out."""
    resource = TEMPLATE["Resources"][name]
    policies = resource["Properties"].get("Policies", [])
    documents = [policy.get("PolicyDocument", policy) for policy in policies]
    return [one for document in documents for one in document["Statement"] if isinstance(one, dict)]
