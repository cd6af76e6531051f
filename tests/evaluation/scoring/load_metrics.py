"""Load metrics by path without a network and compute them: cases on stdin, scores on stdout, as JSON.

The script is a separate process, since `evaluate` fixes its folders when it is imported.
"""

import json
import socket
import sys
import warnings


def refuse(*arguments, **options):
    raise OSError("a metric asked the network")


if __name__ == "__main__":
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    # A call that only warns today will fail in a later release.
    warnings.simplefilter("error", FutureWarning)
    warnings.simplefilter("error", DeprecationWarning)
    # If transformers is installed, `evaluate` imports it and torch, which takes seconds; no metric uses them.
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
