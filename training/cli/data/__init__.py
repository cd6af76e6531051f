"""`maya data`: build, review, validate and export datasets; one file per subcommand."""

from typing import Any

from ..parser import Command
from . import build, export, mini, policy, preambles, review, status, validate

COMMANDS: dict[str, Command] = {
    "mini": mini,
    "build": build,
    "status": status,
    "review": review,
    "policy": policy,
    "export": export,
    "validate": validate,
    "preambles": preambles,
}


def add_commands(commands: Any) -> None:
    """Add `data` and its subcommands to the parser of `maya`."""
    parser = commands.add_parser("data", help="build datasets", description="Build datasets.")
    parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, command in COMMANDS.items():
        parser.add_command(name, command)
