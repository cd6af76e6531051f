"""Table of all private names of other libraries that the source uses, with place and reason.

A private name may change in any release of its library. `test_private_names.py` finds the uses in the source,
compares them with this table, and looks up each name in the installed library. So an upgrade that breaks a name
fails in that test with a clear message. setup.py keeps the libraries of `use` and `override` below their next minor
release.
"""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class PrivateName:
    """A private name and its use.

    place: its place in the library, `module:attribute.attribute`; for a name that a method sets, the class
        whose source contains the name.
    kind: `use` reads or calls the name; `override` replaces a method of a library's class; `declare` sets a
        class attribute that a library reads; after a renaming only a feature is lost.
    parameters: parameters of a function that the use passes or the override takes.
    """

    name: str
    place: str
    kind: Literal["use", "override", "declare"]
    files: tuple[str, ...]
    why: str
    parameters: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        return self.place.partition(".")[0].partition(":")[0]

    def problem(self) -> str | None:
        """Return the problem with the name in the installed library, or None if it exists as used."""
        module, _, path = self.place.partition(":")
        try:
            owner: Any = importlib.import_module(module)
            for part in filter(None, path.split(".")):
                owner = getattr(owner, part)
        except (ImportError, AttributeError) as error:
            return f"{self.place} is gone ({error})"
        if not hasattr(owner, self.name):
            source = inspect.getsource(owner)
            return None if self.name in source else f"{self.place} has no {self.name}"
        if self.parameters:
            found = inspect.signature(getattr(owner, self.name)).parameters
            missing = [name for name in self.parameters if name not in found]
            if missing:
                return f"{self.place}.{self.name} takes no {', '.join(missing)}"
        return None


MODEL = ("modeling_maya/modeling_maya.py",)
TRAINER = ("training/run/trainer.py",)
METRICS = tuple(
    sorted(
        f"training/evaluation/scoring/hf/{file.name}"
        for file in (Path(__file__).parents[2] / "training/evaluation/scoring/hf").glob("*.py")
        if file.name != "__init__.py"
    )
)

TABLE = (
    # Declared by the Hub code for transformers; a renaming causes no error.
    *(
        PrivateName(name, "transformers:PreTrainedModel", "declare", MODEL, why)
        for name, why in (
            ("_supports_flash_attn", "flash attention may be chosen"),
            ("_supports_sdpa", "SDPA may be chosen"),
            ("_supports_flex_attn", "flex attention may be chosen"),
            ("_supports_attention_backend", "serving engines put in their own attention"),
            ("_can_compile_fullgraph", "generate compiles the decoding step in one graph"),
            ("_skip_keys_device_placement", "accelerate leaves the cache where it is"),
            ("_tied_weights_keys", "the head may share the embedding matrix"),
            ("_tp_plan", "engines split the head over GPUs"),
            (
                "_keys_to_ignore_on_load_unexpected",
                "the headless model loads from a folder with a head, and a tower that is whole",
            ),
            ("_auto_class", "set by register_for_auto_class: saves carry the code"),
        )
    ),
    PrivateName(
        "_auto_class",
        "transformers:ProcessorMixin",
        "declare",
        ("processing_maya/processing_maya.py", "processing_maya/image_processing_maya.py"),
        "set by register_for_auto_class: saves carry the code",
    ),
    # The trainer.
    PrivateName(
        "_save",
        "transformers:Trainer",
        "override",
        TRAINER,
        "a checkpoint of an adapter holds the adapter, not the base",
        ("output_dir", "state_dict"),
    ),
    PrivateName(
        "_load_from_checkpoint",
        "transformers:Trainer",
        "override",
        TRAINER,
        "the adapter of a checkpoint is loaded into the model that waits for it",
        ("resume_from_checkpoint", "model"),
    ),
    PrivateName(
        "_load_rng_state",
        "transformers:Trainer",
        "override",
        TRAINER,
        "the sums for the next log line are continued with the random state",
        ("checkpoint",),
    ),
    PrivateName(
        "_get_output_dir",
        "transformers:Trainer",
        "override",
        TRAINER,
        "checkpoints are written under a temporary name first",
        ("trial",),
    ),
    PrivateName(
        "_save_checkpoint",
        "trl:SFTTrainer",
        "override",
        TRAINER,
        "a checkpoint appears whole or not at all",
        ("model", "trial"),
    ),
    PrivateName(
        "_determine_best_metric",
        "transformers:Trainer",
        "override",
        TRAINER,
        "the best checkpoint is one of those that the recipe has saved",
        ("metrics", "trial"),
    ),
    PrivateName(
        "_load_best_model",
        "transformers:Trainer",
        "override",
        TRAINER,
        "a run that is asked to stop keeps its own weights, and an adapter is loaded as one",
    ),
    PrivateName(
        "_prepare_inputs",
        "transformers:Trainer",
        "use",
        TRAINER,
        "held-out rows reach the device as training's do",
        ("inputs",),
    ),
    PrivateName(
        "_loss_shifts_labels",
        "transformers:Trainer",
        "use",
        TRAINER,
        "labels are those of the positions that are scored, nothing is shifted again",
    ),
    PrivateName(
        "_set_sync_gradients",
        "accelerate.state:GradientState",
        "use",
        TRAINER,
        "gradients are reduced with the last packed row of a step",
    ),
    PrivateName(
        "_n_gpu",
        "transformers:TrainingArguments",
        "use",
        ("training/run/sft_config.py",),
        "Trainer would wrap the model in DataParallel where it sees several GPUs",
    ),
    PrivateName(
        "_hf_peft_config_loaded",
        "transformers.integrations.peft:PeftAdapterMixin",
        "use",
        ("training/model/adapters.py",),
        "Trainer takes a quantized base only with an adapter, and reads here that it has one",
    ),
    # Processes.
    PrivateName(
        "_reset_state",
        "accelerate.state:AcceleratorState",
        "use",
        ("training/run/processes.py",),
        "a forked process must not know what its parent knew of the number of processes",
        ("reset_partial_state",),
    ),
    PrivateName(
        "_validate_launch_command",
        "accelerate.commands.launch",
        "use",
        ("training/run/launch.py",),
        "accelerate's config files become its environment variables by accelerate's own code",
        ("args",),
    ),
    # Compiling.
    PrivateName(
        "_dynamo",
        "torch",
        "use",
        ("training/model/compiling.py",),
        "the number of graphs a layer may have, and whether DDP cuts them, are settings of torch._dynamo",
    ),
    PrivateName(
        "_inductor",
        "torch",
        "use",
        ("training/model/compiling.py",),
        "the compile modes that torch has, and whether one records CUDA graphs",
    ),
    # Data.
    PrivateName(
        "_extract_corpus_statistics",
        "sacrebleu.metrics.base:Metric",
        "use",
        ("training/data/verification/scoring.py",),
        "the bootstrap adds up the statistics of resampled sentences",
        ("hypotheses", "references"),
    ),
    PrivateName(
        "_compute_score_from_stats",
        "sacrebleu.metrics.base:Metric",
        "use",
        ("training/data/verification/scoring.py",),
        "and scores their sums",
        ("stats",),
    ),
    PrivateName(
        "_info",
        "evaluate:Metric",
        "override",
        METRICS,
        "evaluate's documented way to define a metric",
    ),
    PrivateName(
        "_compute",
        "evaluate:Metric",
        "override",
        METRICS,
        "evaluate's documented way to define a metric",
    ),
)
