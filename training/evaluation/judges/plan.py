"""The settings of a judge, from the command line or for `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...common.endpoint import EndpointPlan
from .judge import EndpointJudge, Judge
from .judging import FAILED_SHARE, Judging


@dataclass(frozen=True)
class JudgePlan:
    """The judge and how to ask it.

    Args:
        judge: the address of an OpenAI-compatible server, or a folder or Hub repository of a model.
        model: the model's name on the server.
        revision: the commit of the judge's weights; for a server, it is only stored in the results.
        key_env: the environment variable that holds a server's API key.
        journal: file of judgements, which several models may share; None: in the results' folder.
        failed_share: there is no score if a larger share of the judgements failed.
        against: answers of another model, for tasks that compare two.
        concurrency: number of simultaneous calls to a server.
        timeout: limit of one call, in seconds.
        trust_remote_code: passed on to transformers, for a local model.
    """

    judge: str
    model: str | None = None
    revision: str | None = None
    key_env: str | None = None
    journal: Path | None = None
    failed_share: float = FAILED_SHARE
    against: Path | None = None
    concurrency: int = 8
    timeout: float = 300.0
    trust_remote_code: bool = False

    def open(self, folder: Path) -> Judging:
        """Open the judge, ready to be asked.

        Args:
            folder: the folder of the results.

        Raises:
            ValueError, OSError: in one line, if the judge cannot be used.
        """
        return Judging(
            self._judge(), self.journal or folder / "judgements.jsonl", self.failed_share
        )

    def _judge(self) -> Judge:
        if self.judge.startswith(("http://", "https://")):
            if not self.model:
                raise ValueError(
                    f"--judge {self.judge}: expected the model's name on the server, found none: name it with --judge-model"
                )
            plan = EndpointPlan(
                self.judge,
                self.model,
                self.revision,
                self.key_env,
                concurrency=self.concurrency,
                timeout=self.timeout,
            )
            return EndpointJudge(plan)
        for name, value in (("--judge-model", self.model), ("--judge-key-env", self.key_env)):
            if value is not None:
                raise ValueError(
                    f"{name}: expected only with a server's address, found --judge {self.judge}"
                )
        from .local import LocalJudge

        return LocalJudge(self.judge, self.revision, self.trust_remote_code)
