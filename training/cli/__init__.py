"""The `maya` command: each subcommand parses, calls one function of its room, and prints.

- __main__.py: `python -m maya_vlm.training.cli`.
- parser.py: what the subcommands share.
- train.py, data/, evaluate.py, ablate.py, chat.py, serve.py, space.py, merge.py, convert.py, publish.py, renew.py, env.py: one file a
  subcommand, with `add_arguments(parser)` and `run(args)`.

Nothing heavy is imported here, so that `maya --help` answers at once: a subcommand imports its
room when it runs.
"""

import io
import logging
import os
import signal
import sys
from collections.abc import Sequence

from ..common.errors import in_one_line, is_bad_input
from ..common.signals import Stopped
from ..common.telling import one_line
from ..common.versions import warn_of_versions
from . import ablate, chat, convert, data, env, evaluate, merge, publish, renew, serve, space, train
from .parser import Command, Parser, Version

COMMANDS: dict[str, Command] = {
    "train": train,
    "evaluate": evaluate,
    "ablate": ablate,
    "chat": chat,
    "serve": serve,
    "space": space,
    "merge": merge,
    "convert": convert,
    "publish": publish,
    "renew": renew,
    "env": env,
}
# The extra of setup.py that a subcommand needs, where it is another than `eval`.
EXTRAS = {
    "train": "train",
    "ablate": "train,eval",
    "serve": "serve",
    "data": "data",
    "publish": "train",
    "renew": "train",
    "merge": "train",
}


def build_parser() -> Parser:
    """The whole command line, without importing any room."""
    parser = Parser(prog="maya", description=__doc__.split("\n")[0])
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument(
        "--version", action=Version, nargs=0, help="print the versions that matter, and end"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        parser.add_command(name, command)
        if name == "train":
            data.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input prints one line and returns 2."""
    # A file name may hold bytes that are no text, and a terminal may lack a script: print escapes then.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Silence bitsandbytes' import-time warning about an optional CPU package.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    args = build_parser().parse_args(argv)
    try:
        args.call(args)
        sys.stdout.flush()
    except Stopped as error:
        # All processes that train together stop; only one of them prints why.
        if os.environ.get("RANK", "0") == "0":
            _tell(f"maya {args.command}: {error}")
        return 128 + error.number
    except KeyboardInterrupt:
        then = (
            "; the same command continues" if args.command in ("train", "data", "evaluate") else ""
        )
        _tell(f"maya {args.command}: stopped by SIGINT{then}")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it. Python flushes it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        bad_input = is_bad_input(error)
        versions = None if bad_input else warn_of_versions()
        if args.traceback or not (bad_input or versions):
            raise
        message = in_one_line(error, EXTRAS.get(args.command, "eval"))
        if versions:
            told = (
                f"{type(error).__name__}: {message[:200]}; {versions}; maya --traceback shows more"
            )
            message = one_line(told)
        _tell(f"maya {args.command}: error: {message}")
        return 2
    return 0


def _tell(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
