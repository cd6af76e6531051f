"""`maya publish MODEL SPACE --kind space`: the demo page as a Space of the Hub."""

import json
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceCard, SpaceCardData
from huggingface_hub.errors import HfHubHTTPError

from maya_vlm.training.common.models import find_model, read_config
from maya_vlm.training.common.telling import one_line

from ..hub.remote import open_repository
from .start import wording, write_examples

HERE = Path(__file__).parent
# Lower bounds are the oldest tested releases. A Space has its own torch and accelerate.
REQUIREMENTS = ("gradio>=6", "transformers>=5.6", "torch>=2.7", "pillow", "accelerate")


def publish_space(
    model: str,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    token: str | None = None,
) -> str:
    """Push the demo page of a model on the Hub as a Space, in one commit, and return its address.

    Args:
        model: the model's repository (`user/name` or `user/name@revision`); the page loads its present commit.
        repo_id: the Space, `user/name`; created if it does not exist.
        private: create the Space as private; an existing one must be private.
        revision: revision of the model's repository.
        trust_remote_code: whether the Space runs the code in the model's repository. A Maya cannot be loaded
            there without it.
        token: default: the token that huggingface_hub finds.

    Raises:
        ValueError: `model` is a folder, or a Maya without `trust_remote_code`; nothing was sent.
        FileNotFoundError: the model does not exist; nothing was sent.
        OSError: the Hub refused.
    """
    found = find_model(model, revision)
    if found.revision is None:
        raise ValueError(
            f"{model}: expected a model's repository on the Hub, found a folder: a Space loads its "
            f"model from the Hub, so first run: maya publish {model} USER/NAME"
        )
    if read_config(found).get("model_type") == "maya" and not trust_remote_code:
        raise ValueError(
            f"{found.name}: a Space loads a Maya with the code in the model's repository: allow that with "
            "--trust-remote-code"
        )
    api = HfApi(token=token)
    title = f"Ask {found.name.partition('/')[2]}"
    space: dict[str, Any] = {
        "title": title,
        "model": found.name,
        "revision": found.revision,
        "trust_remote_code": trust_remote_code,
        "languages": wording(),
    }
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name in ("app.py", "asking.py"):
            (folder / name).write_bytes((HERE / name).read_bytes())
        content = json.dumps(space, ensure_ascii=False, indent=1)
        (folder / "space.json").write_text(content, encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n")
        (folder / "examples").mkdir()
        write_examples(folder / "examples")
        data = SpaceCardData(
            title=title, sdk="gradio", app_file="app.py", models=[found.name], emoji="🖼️"
        )
        text = f"# {title}\n\nA picture, a question, and the answer of [{found.name}]"
        card = SpaceCard(
            f"---\n{data.to_yaml()}\n---\n\n{text}(https://huggingface.co/{found.name}), in one language or "
            "in all of them. The example pictures are Fluent Emoji by Microsoft (MIT).\n"
        )
        card.save(folder / "README.md")
        try:
            open_repository(api, repo_id, "space", private)
            sent = api.upload_folder(
                repo_id=repo_id,
                repo_type="space",
                folder_path=folder,
                commit_message=f"The demo page of {found.name}",
                delete_patterns="*",
            )
        except HfHubHTTPError as error:
            raise OSError(one_line(f"{repo_id}: {error}")) from error
    return str(sent.repo_url)
