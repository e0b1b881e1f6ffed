"""The traces run the handlers on moto, as the unit tests do."""

from tests.unit.conftest import aws, stack

__all__ = ["aws", "stack"]
