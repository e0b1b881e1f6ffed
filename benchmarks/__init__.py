"""Measured claims: each script prints the table that stands in docs/benchmarks.md."""
