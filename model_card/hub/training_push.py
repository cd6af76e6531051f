"""Push the models of a run during training: checkpoints in the background, finished stages in the foreground.

Every commit is a complete model: weights, code, processor, recipe and a card with the progress of the
training. A killed push leaves the repository at the previous commit, because the Hub applies a commit
atomically.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

from maya_vlm.training.common.files import write_json
from maya_vlm.training.common.models import ADAPTER_CONFIG
from maya_vlm.training.common.reading import read_json_mapping
from maya_vlm.training.common.revisions import split_revision
from maya_vlm.training.common.telling import one_line

from ..cards.model import licence_texts, model_card, write_card
from .publish import chosen_files, contents_of, push_model
from .remote import has_card_of_its_owner, open_repository

CARD = "README.md"


class TrainingPush:
    """Pusher of model folders to one branch of one repository; see `training/run/pushing.py`.

    Args:
        repo_id: `user/name`, or `name` in the token's account.
        private: create the repository as private; an existing one must be private.
        revision: the branch, created if it does not exist; default: main.
        token: default: the token that huggingface_hub finds.
        always: if the previous checkpoint is still being sent, send the next one after it instead of
            leaving it out.
        scratch: a folder for copies of the files being sent; `open` deletes it.
        base: the repository of an adapter's base (`user/name` or `user/name@revision`), to write into
            adapter_config.json; None for whole models.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool,
        revision: str | None,
        token: str | None,
        always: bool,
        scratch: Path,
        base: str | None = None,
    ):
        from huggingface_hub import HfApi

        self.repo_id, self.private, self.always, self.scratch = repo_id, private, always, scratch
        self.branch, self.base = revision or "main", base
        self.api = HfApi(token=token)
        self.waiting: list[tuple[Path, str]] = []
        self.thread: threading.Thread | None = None
        self.failures: list[str] = []

    def open(self) -> None:
        """Create the repository and the branch if they do not exist.

        Raises:
            ValueError: the name is not valid, or the repository is public but should be private.
            OSError: the Hub refused or cannot be reached.
        """
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
        from huggingface_hub.utils import validate_repo_id

        shutil.rmtree(self.scratch, ignore_errors=True)
        try:
            validate_repo_id(self.repo_id)
            if "/" not in self.repo_id:
                self.repo_id = f"{self.api.whoami()['name']}/{self.repo_id}"
            open_repository(self.api, self.repo_id, "model", self.private, "hub_private_repo")
            if self.branch != "main":
                self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True)
        except HFValidationError as error:
            raise ValueError(f"hub_model_id: {one_line(str(error))}") from None
        except HfHubHTTPError as error:
            answer = one_line(error.server_message or str(error))
            raise OSError(f"push_to_hub: the Hub refused model {self.repo_id}: {answer}") from error
        except Exception as error:  # no token, or no connection
            raise OSError(
                f"push_to_hub: model {self.repo_id} cannot be reached: {one_line(str(error))}"
            ) from error

    def send(self, folder: Path, progress: str, recipe: Path) -> bool:
        """Start to send a checkpoint in the background, and return whether it was started.

        Failures are printed, and `finish` reports their number. The next checkpoint is sent as usual.
        """
        if self.thread is not None and self.thread.is_alive() and not self.always:
            return False
        before = self.thread
        try:
            copy = self._copy(folder, recipe)
        except Exception as error:  # e.g. a full disk; the training must go on
            self.failures.append(progress)
            print(f"{progress}: not pushed: {one_line(str(error))}", flush=True)
            return True

        def run() -> None:
            if before is not None:
                before.join()
            try:
                self._commit(copy, progress)
            except Exception as error:
                self.failures.append(progress)
                print(f"{progress}: not pushed: {one_line(str(error))}", flush=True)
            shutil.rmtree(copy, ignore_errors=True)

        # A daemon thread: a stopped run does not wait, and the repository stays at the previous commit.
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        return True

    def finish(self, folder: Path, progress: str | None, recipe: Path) -> str:
        """Wait for the current push, send a finished stage, and return its commit.

        Raises:
            OSError: the push failed; one line.
        """
        if self.thread is not None:
            self.thread.join()
        copy = self._copy(folder, recipe)
        try:
            commit = self._commit(copy, progress)
        except Exception as error:
            raise OSError(
                f"sending to model {self.repo_id} failed: {one_line(str(error))}"
            ) from error
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        missing = f"; {len(self.failures)} pushes before it failed" if self.failures else ""
        what = progress or "the finished model"
        print(f"pushed to {self.repo_id}: {what}, {commit[:12]}{missing}", flush=True)
        return commit

    def _copy(self, folder: Path, recipe: Path) -> Path:
        """Link the files to send into a separate folder, because checkpoints are deleted soon."""
        copy = (
            self.scratch / f"{folder.name}-{threading.get_ident()}-{len(os.listdir(self._made()))}"
        )
        copy.mkdir(parents=True)
        for file in chosen_files(folder, "model")[0]:
            if file.name not in (CARD, "recipe.yaml"):
                _link(file, copy / file.name)
        shutil.copy2(recipe, copy / "recipe.yaml")
        if self.base is not None:
            # The adapter's config may have the path of a downloaded copy.
            settings = read_json_mapping(copy / ADAPTER_CONFIG)
            name, revision = split_revision(self.base)
            settings |= {"base_model_name_or_path": name, "revision": revision}
            (copy / ADAPTER_CONFIG).unlink()
            write_json(copy / ADAPTER_CONFIG, settings)
        return copy

    def _made(self) -> Path:
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self.scratch

    def _commit(self, folder: Path, progress: str | None) -> str:
        """Write the card, send all files in one commit, and return the commit."""
        write_card(folder, lambda: model_card(folder, self.repo_id, progress))
        licences = licence_texts(folder)
        if licences is not None:
            (folder / "LICENSES.md").write_text(licences, encoding="utf-8")
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        changed = folder / "changed"
        changed.mkdir()
        contents: dict[str, Any] = contents_of(folder, files, changed)
        if has_card_of_its_owner(self.api, self.repo_id, "model", self.branch, contents[CARD]):
            del contents[CARD]
        message = f"Training in progress, {progress}" if progress else "End of training"
        return push_model(self.api, contents, self.repo_id, self.branch, message)[0]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)
