"""Estimate quality with a COMET model, by the protocol of `training/data/verification/quality.py`.

Runs in a separate environment, without this package:

    python3 -m venv comet && comet/bin/pip install unbabel-comet
    verification: {quality: {command: [comet/bin/python, .../cometkiwi.py], model: Unbabel/wmt22-cometkiwi-da}}

    cometkiwi.py [--model Unbabel/wmt22-cometkiwi-da] [--gpus 1] [--batch-size 64]

The model is gated on the Hub; its licence is CC-BY-NC-SA-4.0.
"""

import argparse
import contextlib
import json
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="Unbabel/wmt22-cometkiwi-da")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    answers = sys.stdout
    # Standard output is for the protocol; output of libraries goes to standard error.
    with contextlib.redirect_stdout(sys.stderr):
        import comet

        model = comet.load_from_checkpoint(comet.download_model(arguments.model))

    def say(value):
        answers.write(json.dumps(value, ensure_ascii=False) + "\n")
        answers.flush()

    say({"ready": arguments.model})
    rows = []
    for line in sys.stdin:
        if line.strip():
            rows.append(json.loads(line))
            continue
        with contextlib.redirect_stdout(sys.stderr):
            found = model.predict(
                [{"src": row["source"], "mt": row["text"]} for row in rows],
                batch_size=arguments.batch_size,
                gpus=arguments.gpus,
                progress_bar=False,
            )
        for row, score in zip(rows, found.scores, strict=True):
            say({"id": row["id"], "score": float(score)})
        rows = []


if __name__ == "__main__":
    main()
