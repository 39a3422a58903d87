"""On TPUs: `python -m tpu aot` compiles for one on a machine that has none."""
