"""`maya space MODEL`: run the demo page of a model on this machine."""

import tempfile
from pathlib import Path

from maya_vlm import training
from maya_vlm.training.common.languages import NATIVE_NAMES
from maya_vlm.training.common.models import find_model
from maya_vlm.training.inference.chat import answer_in, question_in

from .asking import Asking

# Pictures of an elephant, a bicycle, an apple and a rocket from the mini dataset, under the MIT licence.
EXAMPLES = Path(training.__file__).parent / "data" / "mini" / "images" / "fluent.parquet"
CONCEPTS = ("1f34e", "1f418", "1f680", "1f6b2")


def wording() -> dict[str, dict[str, str]]:
    """Return code -> name and questions of each of Maya's languages, in the form of `asking.Asking`."""
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
        model: a folder or Hub repository (`user/name` or `user/name@revision`) of a Maya, of its adapter, or
            of another image-text-to-text model.
        host: address that the server listens on.
        port: port that the server listens on.
        trust_remote_code: passed on to transformers, for models other than Maya.
        revision: branch, tag or commit of the model's repository.

    Raises:
        ValueError: gradio is not installed, or the model is not usable; one line.
        FileNotFoundError: the model does not exist.
        OSError: the port is in use, or the model cannot be downloaded.
        MemoryError: the model does not fit in memory.
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
    """Write four pictures of the mini dataset into `folder`, and return their files."""
    import pyarrow.parquet as pq

    rows = pq.read_table(EXAMPLES, columns=["concept", "picture"]).to_pylist()
    files = []
    for row in rows:
        if row["concept"] in CONCEPTS:
            path = folder / f"{row['concept']}.png"
            path.write_bytes(row["picture"]["bytes"])
            files.append(str(path))
    return files
