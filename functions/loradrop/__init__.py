"""The domain of loradrop: validating adapters, and naming what serves them. Imports the standard library alone."""

__version__ = "0.1.0"
