"""`maya data preambles`: find the prompt preamble that gives the best translations."""

import argparse

from ..parser import add_set, add_trust, as_path

EXAMPLES = """
maya data preambles study.yaml
maya data preambles study.yaml --set samples=30
maya data preambles study.yaml --set languages=[fr,hi]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "plan", type=as_path, help="a YAML file; repeat the command to continue a stopped study"
    )
    add_set(parser, "plan keys to change, e.g. samples=30 languages=[fr]")


def run(args: argparse.Namespace) -> None:
    from ...data.study.preamble_study import run_study

    report, record = run_study(args.plan, args.overrides, trust_remote_code=args.trust_remote_code)
    for lang, found in record["languages"].items():
        print(
            f"{lang}: {found['winner']} wins"
            if found["winner"]
            else f"{lang}: no significant winner"
        )
    print(f"report in {report}")
