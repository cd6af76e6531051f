"""`maya ablate`: train, evaluate and compare the cells of an ablation study."""

import argparse
import sys
from pathlib import Path

from .parser import add_trust, as_new_folder

EXAMPLES = """
maya ablate study.yaml --jobs 2
maya ablate study.yaml --report
maya ablate study.yaml --full-size --estimate --gpu h100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument("study", help="a YAML file, or the name of a shipped study")
    parser.add_argument(
        "--output",
        type=as_new_folder,
        default=Path("runs/studies"),
        help="folder of all studies, which share their runs (default: runs/studies)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs (default: 1)")
    parser.add_argument(
        "--shard",
        type=as_shard,
        metavar="NUMBER/COUNT",
        help="run one share of the runs, 1/8 to 8/8 for example; one shard for each machine, or job of a cluster",
    )
    parser.add_argument(
        "--report", action="store_true", help="only write the report of the finished runs"
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="only print the memory and time of every cell",
    )
    parser.add_argument("--gpu", help="estimate for this GPU: a100, h100, h200 or l4")
    parser.add_argument(
        "--full-size", action="store_true", help="use the study's variant for the full-size model"
    )
    parser.add_argument(
        "--accelerate",
        metavar="CONFIG",
        help="start each training with accelerate; see maya train",
    )


def run(args: argparse.Namespace) -> None:
    from ..ablation.estimate import check_cells, estimate_cells, estimate_table
    from ..ablation.plan import plan_runs, shard_of, shared
    from ..ablation.report import changed_since, make_report, write_index, write_report
    from ..ablation.run import is_finished, run_study
    from ..ablation.study import cells_of, find_study, folder_name, read_study

    if args.jobs < 1:
        raise ValueError(f"--jobs: expected 1 or more, found {args.jobs}")
    if args.gpu is not None and not args.estimate:
        raise ValueError(
            "--gpu: expected --estimate, found none: add --estimate; a run uses the GPUs of its machine"
        )
    if args.shard is not None and (args.report or args.estimate):
        raise ValueError(
            "--shard: expected a run, found --report or --estimate: they take all runs"
        )
    path = find_study(args.study)
    study = read_study(path, args.full_size)
    if args.estimate:
        cells = estimate_cells(study, args.gpu, args.accelerate, args.trust_remote_code)
        print("\n".join(estimate_table(study, cells)))
        return
    runs = plan_runs(study, str(path), args.output)
    name = folder_name(path) + ("-full-size" if args.full_size else "")
    failed = False
    if (change := changed_since(args.output / name, study, runs)) is not None:
        print(change, flush=True)
    if args.shard is not None:
        runs = shard_of(runs, *args.shard)
    if not args.report:
        finished = sum(is_finished(each, study) for each in runs)
        print(
            f"{len(cells_of(study))} cells, {len(study.seeds)} seeds: {len(runs)} runs, {finished} "
            f"already finished; {shared(runs)} stages are shared",
            flush=True,
        )
        if finished < len(runs):
            cost = check_cells(study, str(path), args.accelerate, args.trust_remote_code)
            print(f"estimate of the whole study: {cost}", flush=True)
        options = ["--accelerate", args.accelerate] if args.accelerate else []
        counts = run_study(
            study, runs, args.output, args.jobs, args.trust_remote_code, options, args.shard
        )
        failed = bool(counts.failed)
        if args.shard is not None:
            print("after the last shard, `maya ablate --report` writes the report")
            sys.exit(int(failed))
    report = make_report(name, study, runs)
    print(report["answer"])
    print(f"written: {write_report(report, args.output / name)}, {write_index(args.output)}")
    if failed:
        print(f"{len(counts.failed)} runs failed; repeat the command to retry them")
        sys.exit(1)


def as_shard(text: str) -> tuple[int, int]:
    """Return (number, count) of a shard; numbers begin at 1."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected NUMBER/COUNT, such as 1/8, found {text!r}")
    return int(number), int(count)
