"""The `loradrop` command."""
