"""PyTorch VideoMAE checkpoints -> Flax parameter trees, with proof; and back.

python -m convert SOURCE OUT

source.py       SOURCE -> its weight files, opened, and what the JSON files beside them say
weights.py      a weight file -> named tensors, read one at a time
layouts.py      the weight maps: one table a layout, pattern -> target path
changes.py      what becomes of an array on the way, and back
recognize.py    which layout, which architecture, which sizes
settings.py     the sizes where no transformers config tells them
label_map.py    some of a head's classes
classes.py      the names of the classes
preprocessor.py preprocessor_config.json -> preprocessing
translate.py    named tensors -> parameter tree; every problem at once
audit.py        what was found, as JSON: conversion.schema.json says what is in it
cautions.py     what to know before trusting the result
report_text.py  the same for a terminal
digests.py      sha256 of what was read and written
reference.py    transformers' model with the weights of a source
verify.py       that model and ours on the same clip, stage by stage
job.py          all of it in order
"""
