"""The domain of loradrop: judging adapters and naming what serves them. Imports the standard library alone."""
