"""The local cloud: the parts of AWS that the stack uses, on this machine, in one process and on one port."""
