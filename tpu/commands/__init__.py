"""The commands of `python -m tpu`, a file each: options, one call, and what is printed."""
