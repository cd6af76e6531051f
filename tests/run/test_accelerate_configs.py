"""Shipped accelerate configs: each builds the plugin it names, and FSDP2 trains like one process.

Without a GPU, accelerate silently replaces FSDP by DDP. So these tests call accelerate's sharding code on two
gloo processes, with the shipped file.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import yaml
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    is_deepspeed_available,
)
from accelerate.utils.dataclasses import get_module_class_from_name
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import ProcessExitedException

from maya_vlm.training.model import loss as head
from maya_vlm.training.model.freezing import apply_rules
from maya_vlm.training.recipe import RECIPES, Rule, load_recipe
from maya_vlm.training.run import trainer
from maya_vlm.training.run.launch import CONFIGS, environment, find_config, launch
from maya_vlm.training.run.train import run_recipe, train
from maya_vlm.training.run.trainer import add_pair_loss, checkpoints
from tests.helpers.tiny import (
    IMAGE_TOKEN,
    PROJECTORS,
    VOCAB,
    enable_checkpointing,
    tiny_images,
    tiny_model,
)

from .tiny_run import logged, make_recipe, training_log, write

ROOT = Path(__file__).parents[2]
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}
RULES = {
    "pretrain": [Rule("multi_modal_projector", 1.0), Rule(".*", "frozen")],
    "finetune": [Rule("vision_tower", "frozen"), Rule(".*", 1.0)],
}
# The content of the console script `maya`.
MAYA = "import sys; from maya_vlm.training.cli import main; sys.exit(main())"


def test_every_shipped_config_is_tested():
    assert {p.stem for p in CONFIGS.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(find_config(name)))
    assert config.distributed_type == KINDS[name]
    # The recipe decides the precision; the command decides the number of processes.
    assert config.mixed_precision == "no"
    assert config.num_processes == -1


def test_fsdp2(monkeypatch):
    for key, value in environment(find_config("fsdp2"), 2).items():
        monkeypatch.setenv(key, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    model = tiny_model()
    found = {
        get_module_class_from_name(model, n).__name__ for n in plugin.transformer_cls_names_to_wrap
    }
    assert found == {"CohereDecoderLayer", "SiglipEncoderLayer"}
    # The 8B recipe has the same settings for `maya train` without accelerate.
    args = load_recipe(RECIPES / "maya-8b" / "finetune.yaml").stages[0].args["fsdp_config"]
    assert args["version"] == 2
    assert args["reshard_after_forward"] is True
    assert args["state_dict_type"] == "FULL_STATE_DICT"
    assert set(args["transformer_layer_cls_to_wrap"]) == found


@pytest.mark.parametrize("stage", [2, 3])
def test_zero(stage, monkeypatch):
    for key, value in environment(find_config(f"zero{stage}"), 2).items():
        monkeypatch.setenv(key, value)
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision("bf16")
    config = plugin.deepspeed_config
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"]["enabled"] is True
    # Without this option ZeRO-3 would save placeholders instead of weights.
    saves = config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    assert saves is (stage == 3)
    assert plugin.zero3_init_flag is False
    for name in ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size"):
        assert config[name] == "auto", name


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'fsdp3': .* shipped: ddp, fsdp2, zero2, zero3"):
        find_config("fsdp3")
    bad = tmp_path / "bad.yaml"
    for text in ("[1, 2]", "a: [", "distributed_type: FSDP\nfsdp_konfig: {}\n"):
        bad.write_text(text)
        with pytest.raises(ValueError, match=r"bad.yaml: no config file of accelerate's") as error:
            environment(bad, 2)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ FSDP2


def make(stage: str, kind: str = "mlp"):
    model = tiny_model(text={"attention_dropout": 0.0}, **PROJECTORS[kind]).train()
    apply_rules(model, RULES[stage])
    enable_checkpointing(model, use_reentrant=False)
    add_pair_loss(model)
    return model


def shares(config) -> list[dict[str, torch.Tensor]]:
    """Return two shares: a row about three images, two of them equal, and a short text-only row."""
    random = torch.Generator().manual_seed(0)
    result = []
    for images, learned in ((3, 13), (0, 2)):
        words = torch.randint(IMAGE_TOKEN + 1, VOCAB, (15,), generator=random).tolist()
        ids = torch.tensor([[5] + [IMAGE_TOKEN] * (images * config.image_seq_length) + words])
        source = torch.arange(ids.shape[1] - learned - 1, ids.shape[1] - 1)
        share = {"input_ids": ids, "logit_positions": source, "labels": ids[0, source + 1]}
        if images:
            share |= {"pixel_values": tiny_images(2), "image_index": torch.tensor([0, 1, 0])}
        result.append(share)
    return result


def fsdp_process(rank: int, stage: str, kind: str, folder: str, variables: dict[str, str]) -> None:
    """Run one of two ranks: compare the sharded step on its share with both shares on an unsharded model."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    # The first share's logits need several tiles and the second's one, so the ranks differ in their number.
    head.TILE["cpu"] = 4 * VOCAB
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    whole = make(stage, kind)
    count = sum(len(share["labels"]) for share in shares(whole.config))
    expected = torch.zeros(())
    for share in shares(whole.config):
        loss = whole(**share)[0].sum() / count
        loss.backward()
        expected += loss.detach()

    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin()),
        mixed_precision="no",
        is_main_process=rank == 0,
        device=torch.device("cpu"),
        torch_device_mesh=None,
        parallelism_config=None,
    )
    model = fsdp2_prepare_model(accelerator, make(stage, kind))
    sharded = [n for n, m in model.named_modules() if type(m).__name__.startswith("FSDP")]
    assert {"model.language_model.layers.0", "model.vision_tower.encoder.layers.0"} <= set(sharded)
    # Two steps, because state left by the first must not change the second.
    for _ in range(2):
        model.zero_grad()
        loss = model(**shares(whole.config)[rank])[0].sum() / count
        (2 * loss).backward()  # gradients are averaged over ranks
    loss = loss.detach()
    dist.all_reduce(loss)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
    compared = 0
    for (name, one), (other, two) in zip(
        model.named_parameters(), whole.named_parameters(), strict=True
    ):
        assert name == other
        assert one.to_local().numel() < one.numel() or one.shape[0] == 1, name
        assert (one.grad is None) == (two.grad is None), name
        if two.grad is not None:
            scale = two.grad.abs().max().item()
            assert scale > 0, name
            torch.testing.assert_close(
                one.grad.full_tensor(), two.grad, rtol=1e-5, atol=1e-6 * scale
            )
            compared += 1
    assert compared == sum(p.requires_grad for p in whole.parameters())
    Path(folder, f"done-{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["mlp", "gated_cross_attention"])
@pytest.mark.parametrize("stage", RULES)
def test_fsdp2_learns_as_one_process(stage, kind, tmp_path):
    """Check in float32 that the loss agrees within 1e-6, and each gradient within 1e-5 (relative) or 1e-6 of its maximum."""
    variables = environment(find_config("fsdp2"), 2)
    torch.multiprocessing.start_processes(
        fsdp_process, args=(stage, kind, str(tmp_path), variables), nprocs=2, start_method="fork"
    )
    assert {p.name for p in tmp_path.glob("done-*")} == {"done-0", "done-1"}


def losses(folder: Path) -> dict[int, float]:
    """Return step -> mean loss of a stage."""
    return {line["step"]: line["mean_loss"] for line in logged(folder)}


def run_process(
    rank: int, name: str, path: str, output: str, port: int, killed: str | None
) -> None:
    """Run one of two ranks of a whole recipe with the config `name`, and kill it in the stage
    `killed`."""
    os.environ.update(environment(find_config(name), 2), DS_ACCELERATOR="cpu")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for shared in (AcceleratorState, GradientState, PartialState):
        shared._reset_state()
    # accelerate replaces FSDP by DDP for CPU processes: make it believe that they use GPUs.
    initialise = PartialState.__init__

    def initialise_as_gpu(self, *arguments, **options):
        initialise(self, *arguments, **options)
        if name == "fsdp2" and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = initialise_as_gpu
    log = trainer.MayaTrainer.log

    def checked_log(self, *arguments, **options):
        kind = DistributedType.MULTI_CPU if name == "ddp" else KINDS[name]
        assert self.accelerator.distributed_type == kind
        if name == "fsdp2":
            assert self.accelerator.is_fsdp2
            assert all(isinstance(p, DTensor) for p in self.model.parameters())
            if self.args.bf16 and self._sums.any():  # sums have more precision than products
                assert self._sums[:, 0].ne(self._sums[:, 0].bfloat16()).any()
                policy = self.accelerator.state.fsdp_plugin.mixed_precision_policy
                assert policy.param_dtype == torch.bfloat16
                assert policy.reduce_dtype == torch.float32
        elif name.startswith("zero"):
            assert self.model_wrapped.zero_optimization_stage() == int(name[-1])
        log(self, *arguments, **options)
        if Path(self.args.output_dir).name == killed and self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.MayaTrainer.log = checked_log
    run_recipe(load_recipe(Path(path), output_dir=output), False, False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[str, Path]:
    """Return a recipe's file and the output of one process: two stages and a low-rank adapter, with
    text-only rows and several packed rows per step."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = make_recipe(folder)
    rows = Path(recipe["stages"][0]["data"][0]["path"])
    text = {"images": [], "lang": "en", "task": "name"}
    text["messages"] = [{"role": r, "content": f"{r} says"} for r in ("user", "assistant")]
    with rows.open("a") as file:
        file.writelines("\n" + json.dumps({"id": f"text-{i}", **text}) for i in range(6))
    lora = {"name": "lora", "adapter": {"rate": 0.01, "r": 4}, "group_size": 1}
    recipe["stages"].append({**recipe["stages"][0], **lora})
    for stage in recipe["stages"]:
        stage["batch_size"] = 6
        stage["args"] |= {"max_length": 64, "gradient_checkpointing": True}
    path = str(write(recipe, folder / "r.yaml"))
    return path, train(path, output_dir=str(folder / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_two_processes_is_that_of_one(name, alone, tmp_path):
    """Check a run that was killed in two stages and continued: losses and final weights agree within 2e-5."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    path, one = alone
    two = tmp_path / "two"
    for killed in ("finetune", "lora", None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with pytest.raises(ProcessExitedException) if killed else contextlib.nullcontext():
            torch.multiprocessing.start_processes(
                run_process,
                args=(name, path, str(two), port, killed),
                nprocs=2,
                start_method="fork",
            )
        left = trainer.checkpoints(two / ".work" / (killed or "lora"))
        assert [p.name for p in left] == (["checkpoint-2"] if killed else [])
    for stage in ("pretrain", "finetune", "lora"):
        assert losses(two / stage) == pytest.approx(losses(one / stage), abs=2e-5)
    expected = load_file(one / "model.safetensors")
    found = load_file(two / "model.safetensors")
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        torch.testing.assert_close(found[tensor], value, rtol=0.0, atol=2e-5, msg=tensor)


@pytest.mark.slow
def test_fsdp2_in_bfloat16_adds_up_in_float32(alone, tmp_path):
    recipe = yaml.safe_load(Path(alone[0]).read_text())
    recipe["stages"] = recipe["stages"][:2]
    for stage in recipe["stages"]:
        stage["args"]["bf16"] = True
    path = str(write(recipe, tmp_path / "r.yaml"))
    one, two = train(path, output_dir=str(tmp_path / "one")), tmp_path / "two"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(
        run_process, args=("fsdp2", path, str(two), port, None), nprocs=2, start_method="fork"
    )
    for stage in ("pretrain", "finetune"):
        assert losses(two / stage) == pytest.approx(losses(one / stage), rel=5e-3)


def test_buffers_keep_their_precision():
    """Check buffers, because DeepSpeed casts a model's buffers together with its weights."""
    model = make("finetune")
    exact = {name: buffer.clone() for name, buffer in model.named_buffers()}
    keep = trainer.RestoreFp32Buffers(model)
    model.bfloat16()
    assert any(b.dtype != exact[n].dtype for n, b in model.named_buffers())
    keep.on_train_begin(None, None, None, model=model)
    for name, buffer in model.named_buffers():
        assert buffer.dtype == exact[name].dtype
        assert torch.equal(buffer, exact[name]), name
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_run_keeps_its_buffers(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(
        trainer.RestoreFp32Buffers, "on_train_begin", lambda *_, model, **__: begun.append(model)
    )
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    train(str(write(recipe, tmp_path / "r.yaml")))
    assert [type(model).__name__ for model in begun] == ["MayaForConditionalGeneration"]


# ------------------------------------------------------------------------------ command


def maya(folder: Path, *arguments: str, code: str = MAYA) -> subprocess.CompletedProcess:
    script = folder / "maya.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script), "train", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_the_command_starts_as_many_processes_as_the_recipe_says(tmp_path):
    path = str(write(make_recipe(tmp_path), tmp_path / "r.yaml"))
    done = maya(tmp_path, path, "--output-dir", str(tmp_path / "one"))
    assert done.returncode == 0, done.stderr[-2000:]
    two = tmp_path / "two"
    arguments = ("--accelerate", "ddp", "--output-dir", str(two), "--set", "processes=2")
    done = maya(tmp_path, path, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    for stage in ("pretrain", "finetune"):
        assert training_log(two / stage)["processes"] == 2
        assert losses(two / stage) == pytest.approx(losses(tmp_path / "one" / stage), abs=2e-5)


TERMINATED = """
import os, signal, sys
from maya_vlm.training.run import trainer
from maya_vlm.training.cli import main
original = trainer.LineCallback.on_log
def on_log(self, args, state, control, **kwargs):
    original(self, args, state, control, **kwargs)
    if self.stage == "finetune" and state.global_step == 1 and os.environ.get("RANK") == "0":
        os.kill(int(os.environ["MAYA_PID"]), signal.SIGTERM)
trainer.LineCallback.on_log = on_log
os.environ.setdefault("MAYA_PID", str(os.getpid()))
sys.exit(main())
"""


@pytest.mark.slow
def test_sigterm_is_passed_on_and_waited_for(tmp_path):
    path = str(write(make_recipe(tmp_path), tmp_path / "r.yaml"))
    arguments = ("--accelerate", "ddp", "--set", "processes=2")
    done = maya(tmp_path, path, *arguments, code=TERMINATED)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    assert "stage finetune: asked to stop, saved after step" in done.stderr
    assert checkpoints(tmp_path / "run" / ".work" / "finetune")
    done = maya(tmp_path, path, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continuing from" in done.stdout


@pytest.mark.slow
def test_what_is_wrong_inside_comes_out(tmp_path):
    recipe = make_recipe(tmp_path)
    recipe["model"]["language_model"] = str(tmp_path / "none")
    path = str(write(recipe, tmp_path / "r.yaml"))
    done = maya(tmp_path, path, "--accelerate", "ddp", "--set", "processes=2")
    assert done.returncode == 2
    assert "maya train: error: model.language_model: no model at" in done.stderr


@pytest.mark.skipif(is_deepspeed_available(), reason="needs DeepSpeed not to be installed")
def test_deepspeed_is_missing():
    with pytest.raises(ValueError, match=r"zero2.yaml: DeepSpeed is not installed"):
        launch(find_config("zero2"), 2, ["maya"])
