"""What a repository of the Hub is like before something is sent to it: who sees it, and whose card it has."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from maya_vlm.training.common.reading import read_text

from ..cards.model import MARKER
from .content import Content

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LONGEST_CARD = 2**20


def open_repository(api: HfApi, repo_id: str, kind: str, private: bool) -> None:
    """Create the repository where it does not exist.

    Raises:
        ValueError: it exists and everybody sees it, and `private` is asked for.
        HfHubHTTPError: what the Hub answered.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.repo_info(repo_id, repo_type=kind)
    except RepositoryNotFoundError:
        # It may be there by now, made by somebody else.
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        found = api.repo_info(repo_id, repo_type=kind) if private else None
    else:
        if found.private and not private:
            print(f"note: {repo_id} is private on the Hub, and stays so")
    if private and not (found and found.private):
        raise ValueError(
            f"--private: expected {kind} {repo_id} to be private, found it public on the Hub; nothing was "
            "sent: make it private in its settings there, or leave --private out"
        )


def has_card_of_its_owner(
    api: HfApi, repo_id: str, kind: str, revision: str, card: Content
) -> bool:
    """Whether a branch has a README.md that somebody wrote, not this package, and that is not `card`.

    Raises HfHubHTTPError for what the Hub answered.
    """
    found = api.get_paths_info(repo_id, ["README.md"], repo_type=kind, revision=revision)
    if not found or card.arrived(found[0]):
        return False
    if getattr(found[0], "size", 0) > _LONGEST_CARD:
        return True
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(
            repo_id, "README.md", repo_type=kind, revision=revision, local_dir=folder
        )
        try:
            return MARKER not in read_text(Path(path))
        except ValueError:
            return True
