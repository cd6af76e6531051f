"""How a judge is named: on the command line, and for `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...common.endpoint import EndpointPlan
from .judge import EndpointJudge, Judge
from .judging import FAILED_SHARE, Judging


@dataclass(frozen=True)
class JudgePlan:
    """Which model judges.

    Args:
        judge: the address of an OpenAI-compatible server, or a folder or Hub repository of a model.
        model: the name by which a server knows the model.
        revision: the commit of the judge's weights; of a server, what results shall say.
        key_env: the environment variable that holds a server's API key.
        journal: file of judgements, which several models may share; None: in the results' folder.
        failed_share: of failed judgements, above which there is no score.
        against: answers of another model, for tasks that compare two.
        concurrency: calls to a server at once.
        timeout: seconds for one call.
        trust_remote_code: passed on to transformers, for a model here.
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
        """The judge, ready to be asked. Raises ValueError or OSError in one line for one that cannot be.

        Args:
            folder: of the results.
        """
        return Judging(
            self._judge(), self.journal or folder / "judgements.jsonl", self.failed_share
        )

    def _judge(self) -> Judge:
        if self.judge.startswith(("http://", "https://")):
            if not self.model:
                raise ValueError(
                    f"--judge {self.judge}: expected --judge-model with the name of the model there"
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
                    f"{name}: expected with the address of a server, found --judge {self.judge}"
                )
        from .local import LocalJudge

        return LocalJudge(self.judge, self.revision, self.trust_remote_code)
