"""`maya env`: print the package versions for a bug report."""

import argparse

from ..common.versions import report

EXAMPLES = """
maya env
maya env > versions.md
maya env | head -3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> None:
    print(report())
