"""The `loradrop` command. In the wheel this package is called loradrop_cli: within it, imports are relative."""
