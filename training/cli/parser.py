"""Argument parser, argument types and common options (`--set`, `--trust-remote-code`) of the subcommands."""

import argparse
import difflib
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ..common.paths import expand
from ..common.secrets import redact_text
from ..common.telling import one_line
from ..common.versions import installed, own_version, warn_of_versions


class Command(Protocol):
    """The interface of a subcommand's module. The module's docstring is "`maya NAME`: SUMMARY."."""

    # Example commands, one per line, for the end of the help.
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> None: ...


class Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line with the nearest known name.

    Without arguments, it prints the help.
    """

    def __init__(self, *args: Any, **options: Any):
        self.options: list[str] = []
        self.commands: Any = None
        super().__init__(*args, **options)

    def add_argument(self, *args: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*args, **options)
        self.options += action.option_strings
        return action

    def add_subparsers(self, **options: Any) -> Any:
        self.commands = super().add_subparsers(**options)
        return self.commands

    def add_command(self, name: str, command: Command) -> None:
        """Add a module's subcommand. Call `add_subparsers` first."""
        examples = "".join(f"  {line}\n" for line in command.EXAMPLES.strip().splitlines())
        summary = (command.__doc__ or "").partition(": ")[2].strip().rstrip(".")
        parser = self.commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(call=command.run)
        command.add_arguments(parser)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = sys.argv[1:] if args is None else args
        if not given and self.commands is not None:
            self.print_help()
            self.exit(2)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        message += self._nearest(message)
        self.exit(
            2, f"{self.prog}: error: {one_line(redact_text(message))}; see {self.prog} --help\n"
        )

    def _nearest(self, message: str) -> str:
        """Return a hint with the known command or option nearest to a mistyped one, or an empty string."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL)
        if wrong:
            known = re.findall(r"[\w-]+", wrong[2])
        else:
            wrong = re.search(r"unrecognized arguments: (--[\w-]+)", message)
            known = sorted({option for parser in self._all() for option in parser.options})
        close = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
        return f"; did you mean {close[0]!r}?" if close else ""

    def _all(self) -> "Iterator[Parser]":
        yield self
        if self.commands is not None:
            for parser in self.commands.choices.values():
                yield from parser._all()


class Version(argparse.Action):
    """`--version`: look up the versions only when the option is given."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        names = ("torch", "transformers", "trl")
        known = {package.name: package for package in installed()}
        print(f"maya-vlm {own_version()}, python {platform.python_version()}", end="")
        print("".join(f", {name} {known[name].version or 'not installed'}" for name in names))
        if told := warn_of_versions():
            print(told)
        parser.exit()


class _Changes(argparse.Action):
    """`--set KEY=VALUE ...`: collect the changes of every occurrence of the option."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        *_: object,
    ) -> None:
        for value in values:
            if "=" not in value:
                raise argparse.ArgumentError(
                    self,
                    f"expected KEY=VALUE such as seed=1, found {value!r}: put other arguments before --set",
                )
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])


def add_set(parser: argparse.ArgumentParser, keys: str) -> None:
    """Add `--set KEY=VALUE ...`, stored as `overrides`.

    Args:
        parser: the subcommand's parser.
        keys: for the help: which keys the option changes, with an example.
    """
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action=_Changes,
        default=[],
        metavar="KEY=VALUE",
        help=f"dotted {keys}",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-remote-code`, for subcommands that load models."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="allow the Python code in a model repository to run",
    )


def add_languages(parser: argparse.ArgumentParser, help: str = "only these languages") -> None:
    """Add `--languages LANG ...`."""
    parser.add_argument("--languages", nargs="+", action="extend", metavar="LANG", help=help)


def as_place(text: str) -> str:
    """Return an expanded path, or the name of a Hub repository unchanged."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def as_path(text: str) -> Path:
    return Path(as_place(text))


def as_folder(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder, found an empty text: name a folder")
    return as_place(text)


def as_new_folder(text: str) -> Path:
    return Path(as_folder(text))
