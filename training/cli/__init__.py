"""The `maya` command line: train, evaluate, use and publish multilingual vision-language models.

- __main__.py: entry point of `python -m maya_vlm.training.cli`.
- parser.py: the argument parser, and the options and argument types that subcommands share.
- train.py, data/, evaluate.py, ablate.py, chat.py, serve.py, space.py, merge.py, convert.py, publish.py, renew.py, env.py:
  one file per subcommand. `add_arguments(parser)` declares its options; `run(args)` calls one function of another
  room and prints the result.

A subcommand imports its room only when it runs. No heavy library is imported here, so `maya --help` is fast.
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
# Subcommand -> the extra of setup.py that it needs; other subcommands need `eval`.
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
    """Return the parser of the whole command line. No room is imported."""
    parser = Parser(prog="maya", description=__doc__.split("\n")[0])
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument(
        "--version", action=Version, nargs=0, help="print the relevant package versions and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        parser.add_command(name, command)
        if name == "train":
            data.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the arguments; sys.argv[1:] if None.

    Returns:
        The exit code: 0, or 2 after bad input (printed as one line), or 128 + the signal's number.
    """
    # Print escapes for file names that are not valid text and for characters that the terminal cannot encode.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Silence bitsandbytes' import-time warning about an optional CPU package.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    args = build_parser().parse_args(argv)
    try:
        args.call(args)
        sys.stdout.flush()
    except Stopped as error:
        # Every training process stops; only rank 0 prints the reason.
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
        # The reader of the output, such as `head`, closed the pipe. Python flushes stdout again at exit.
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
