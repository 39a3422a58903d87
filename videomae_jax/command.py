"""What all commands do alike: bad input is one line on stderr and exit code 2."""

import argparse
import atexit
import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

LOGGERS = ("convert", "tpu", "videomae_jax")
"""Those of the three packages: what a command may show."""
TOLD = ("convert", "videomae_jax.boxed", "videomae_jax.training")
"""Loggers whose every word a user sees: a conversion on first use, which model is used, a run."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, "program: error: ...", like every other error.

    `program` is the name in that line; by default the first word of `prog`.
    """

    def __init__(self, *args, program: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.program = program or self.prog.split()[0]

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(fail(self.program, message))


def fail(program: str, *problems: object) -> int:
    """Print what is wrong, one line each; returns the exit code for it."""
    for problem in problems:
        sys.stderr.write(f"{program}: error: {' '.join(str(problem).split())}\n")
    return 2


def one_line(error: BaseException) -> str:
    """What an error says, as one line that is never empty."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        # Without the number.
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split())[:500] or type(error).__name__


def run_quietly(run: Callable[[], int]) -> int:
    """Run a command; a reader that went away, or Ctrl-C, ends it without a word."""
    try:
        with seldom_collecting():
            code = run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python would try to write the rest once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


@contextlib.contextmanager
def seldom_collecting() -> Iterator[None]:
    """Look for cycles of garbage less often meanwhile, and not at all when the process ends.

    Libraries make more than a hundred thousand objects that are there to stay. To look through
    them again and again takes 0.1 s of a start, and once more at exit 0.25 s.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 20)
    # Registered once, however often commands run in one process.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def log_on_stderr(program: str) -> Iterator[None]:
    """Show what is logged as lines of a command: warnings, and all that `TOLD` says."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogLine(program))
    # absl, of which Orbax and Grain are users, puts a handler on the root: it would say all again.
    loggers = {logging.getLogger(name): logging.getLogger(name).propagate for name in LOGGERS}
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in TOLD}
    for logger in levels:
        logger.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagates in loggers.items():
            logger.removeHandler(handler)
            logger.propagate = propagates
        for logger, level in levels.items():
            logger.setLevel(level)


class LogLine(logging.Formatter):
    """A record as one line, "program: ..." or "program: warning: ..."."""

    def __init__(self, program: str):
        super().__init__()
        self.program = program

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        kind = "warning: " if record.levelno >= logging.WARNING else ""
        return f"{self.program}: {kind}{' '.join(record.getMessage().split())}"
