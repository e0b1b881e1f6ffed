from . import tiny_base

print(f"the tiny base is in {tiny_base()}")
