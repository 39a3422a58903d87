"""The commands of `videomae`, a module each.

A module has `add(commands)`, which adds its parsers to those of the program; each sets `run`, the
function that gets the parsed options and returns the exit code. What a command works with is
imported when it runs: `videomae --help` is quick.
"""

import argparse
import importlib
from typing import Any

# In the order of the help.
MODULES = ("classify", "evaluate", "train", "probe", "recipes", "pack")


def add_all(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the parsers of all commands."""
    for name in MODULES:
        importlib.import_module(f"videomae_jax.commands.{name}").add(commands)
