"""A model checker for the deployment protocol: see docs/protocol.md."""
