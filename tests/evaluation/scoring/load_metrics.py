"""Loads metrics by path without a network and computes them: cases on stdin, scores on stdout, as JSON.

A process of its own, since `evaluate` fixes its folders when it is imported.
"""

import json
import socket
import sys
import warnings


def refuse(*arguments, **options):
    raise OSError("a metric asked the network")


if __name__ == "__main__":
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    # What warns of our calls today fails later.
    warnings.simplefilter("error", FutureWarning)
    warnings.simplefilter("error", DeprecationWarning)
    # `evaluate` imports it where it is installed, and torch with it, for seconds; no metric uses it.
    sys.modules["transformers"] = None
    import evaluate

    del sys.modules["transformers"]
    from maya_vlm.training.evaluation.scoring.hf import path

    scores = []
    for name, columns in json.load(sys.stdin):
        metric = evaluate.load(path(name))
        texts = (metric.description, metric.citation, metric.inputs_description)
        assert all(texts), f"{name} does not describe itself"
        scores.append(metric.compute(**columns))
    json.dump(scores, sys.stdout)
