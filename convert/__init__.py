"""PyTorch VideoMAE checkpoints -> Flax parameter trees, with proof.

python -m convert SOURCE OUT

source.py      SOURCE -> its weight files, opened, and what the JSON files beside them say
weights.py     a weight file -> named tensors, read one at a time
layouts.py     the weight maps: one table a layout, pattern -> target path
recognize.py   which layout, which architecture, which sizes
translate.py   named tensors -> parameter tree; every problem at once
audit.py       what was found, as JSON and as text
verify.py      transformers' model and ours on the same clip, stage by stage
job.py         all of it in order
"""
