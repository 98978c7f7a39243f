"""Types of what a command is given on its command line: each takes a text, and refuses one that is none of it."""

import argparse
import re

DEVICES = "auto|cpu|cuda:N"  # as a command's help has them


def device(name: str) -> str:
    """Return `name`, a device to train on; raise `ArgumentTypeError` for any other text."""
    if not re.fullmatch(r"auto|cpu|cuda:[0-9]+", name):
        raise argparse.ArgumentTypeError(f"{name!r} is none of auto, cpu, cuda:0, cuda:1, …")
    return name


def count(text: str) -> int:
    """Return the number in `text`, at least 1; raise `ArgumentTypeError` for any other text."""
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)
