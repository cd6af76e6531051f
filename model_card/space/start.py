"""`maya space MODEL`: show the demo page of a model on this machine."""

import tempfile
from pathlib import Path

from maya_vlm import training
from maya_vlm.training.common.languages import NATIVE_NAMES
from maya_vlm.training.common.models import find_model
from maya_vlm.training.inference.chat import answer_in, question_in

from .asking import Asking

# An elephant, a bicycle, an apple and a rocket of the mini dataset, under the MIT licence.
EXAMPLES = Path(training.__file__).parent / "data" / "mini" / "images" / "fluent.parquet"
CONCEPTS = ("1f34e", "1f418", "1f680", "1f6b2")


def wording() -> dict[str, dict[str, str]]:
    """Return for each of Maya's languages its own name and its questions, as `asking.Asking` takes them."""
    return {
        code: {
            "name": name,
            "question": question_in(None, code),
            "answer_in": answer_in(code),
        }
        for code, name in NATIVE_NAMES.items()
    }


def start(
    model: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Show the page until the process is stopped.

    Args:
        model: a folder or Hub repository (`user/name@revision` too), of a Maya, of an adapter of one, or
            of another image-text-to-text model.
        host: where the page listens.
        port: where the page listens.
        trust_remote_code: passed on to transformers, for models other than Maya.
        revision: branch, tag or commit of the model's repository.

    Raises:
        ValueError, FileNotFoundError, OSError, MemoryError: in one line: no such model, or no gradio.
    """
    try:
        from .app import STYLE, make_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("the page needs gradio: pip install gradio") from None
    from maya_vlm.training.inference.load import load
    from maya_vlm.training.inference.serve import check_port

    check_port(host, port)

    name = find_model(model, revision).title
    network, processor = load(model, trust_remote_code, revision)
    with tempfile.TemporaryDirectory(prefix="maya-space-") as folder:
        asking = Asking(network, processor, wording())
        page = make_page(asking, name, write_examples(Path(folder)))
        page.launch(
            server_name=host, server_port=port, css=STYLE, footer_links=[], allowed_paths=[folder]
        )


def write_examples(folder: Path) -> list[str]:
    """Write a few pictures of the mini dataset into `folder`, and return their files."""
    import pyarrow.parquet as pq

    rows = pq.read_table(EXAMPLES, columns=["concept", "picture"]).to_pylist()
    files = []
    for row in rows:
        if row["concept"] in CONCEPTS:
            path = folder / f"{row['concept']}.png"
            path.write_bytes(row["picture"]["bytes"])
            files.append(str(path))
    return files
