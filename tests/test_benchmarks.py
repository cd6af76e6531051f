"""The benchmarks run and say what they claim to say; how fast anything is, no test asserts."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_full_size, learning_by_group_size

# ------------------------------------------------------------------------------ training_speed


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pretrain_8_24", "finetune_100", "nothing_shared"])
def test_both_sides_compute_the_same(case, tmp_path):
    from tests.benchmarks import training_speed

    output = tmp_path / "speed.json"
    arguments = ["--quick", "--rounds", "2", "--cases", case, "--output", str(output)]
    command = [sys.executable, training_speed.__file__, *arguments]
    # From another folder, and in a process of its own, as it forks to measure memory.
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    record = json.loads(output.read_text())["cases"][case]
    assert set(record["loss"]) >= {"maya", "trl", "trl_supervised", "stock_forward"}
    assert record["loss"]["steps"] == 3
    assert record["loss"]["largest_relative_difference"] <= training_speed.LOSS_TOLERANCE
    for other in ("trl", "trl_supervised"):
        assert record["gradient_relative_difference"][other] <= training_speed.GRADIENT_TOLERANCE
        faster = record["times_faster"][other]["step"]
        assert faster["per_round"]["least"] <= faster["per_round"]["most"]
        assert record["times_faster"][other]["forward_backward"]["ratio_of_medians"] > 0
    tokens = record["decoder_tokens_per_sample"]
    assert tokens["trl"] == tokens["trl_supervised"] > tokens["maya"]
    assert record["seconds"]["maya"]["step"]["median"] > 0
    assert {"machine", "versions", "package", "shape", "rounds"} <= set(record)
    assert next(t["target"] for t in record["targets"]) == training_speed.CASES[case].speed
    if sys.platform == "linux":
        assert set(record["memory"]["bytes"]) == set(training_speed.TRAINERS)
    assert case in run.stdout
    assert f"{record['loss']['maya']:.6f} ours" in run.stdout


@pytest.mark.slow
def test_a_difference_fails_the_command(monkeypatch, tmp_path, capsys):
    from tests.benchmarks import training_speed

    stock = training_speed.stock_model

    def without_scale(*arguments):
        model, processor = stock(*arguments)
        model.config.text_config.logit_scale = 1.0  # what TRL's head reads
        return model, processor

    monkeypatch.setattr(training_speed, "stock_model", without_scale)
    monkeypatch.setattr(training_speed, "measure_memory", lambda case, shape: None)
    output = tmp_path / "speed.json"
    arguments = ["--quick", "--rounds", "1", "--cases", "pretrain_8_24", "--output", str(output)]
    assert training_speed.main(arguments) == 1
    assert "do not compute the same" in capsys.readouterr().err
    assert not output.exists()


# ------------------------------------------------------------------------------ learning_by_group_size


def test_climbing_ends_at_the_best_point():
    asked = []

    def measure(points):
        asked.extend(points)
        return [(math.log2(b) - 6) ** 2 + (math.log2(r) + 3) ** 2 for b, r in points]

    assert learning_by_group_size.climb(measure, (16, 0.5)) == (64, 0.125)
    assert len(asked) == len(set(asked))


def test_climbing_does_not_follow_noise():
    start = (16, 0.5)
    for gain, end in ((0.9, start), (1.1, (32, 0.5))):
        losses = {(32, 0.5): 2 - gain * learning_by_group_size.WORTH}
        measure = partial(
            lambda points, losses: [losses.get(p, 2.0) for p in points], losses=losses
        )
        assert learning_by_group_size.climb(measure, start) == end


def test_climbing_stays_above_no_images():
    assert (
        learning_by_group_size.climb(lambda points: [b + r for b, r in points], (2, 1e-9))[0] == 1
    )


def test_held_out_things_are_not_learned(tmp_path):
    from maya_vlm.training.batches.joined import Filters
    from tests.helpers.image_groups import image_groups

    study = learning_by_group_size
    source = study.recipe_of(study.Run(1, 16, 2e-2, 1, 0)).stages[0].data[0]
    source = replace(source, languages=["en", "hi"])
    study.hold_out(3, source, tmp_path / "data")

    def rows(path, split):
        groups = image_groups(path, "all", split, Filters(languages=source.languages))
        return [row for group in groups for row in group.rows]

    train, held = (rows(str(tmp_path / "data"), split) for split in ("train", "validation"))
    assert len({row["concept"] for row in held}) == 3
    assert not {row["concept"] for row in held} & {row["concept"] for row in train}
    texts = [
        sorted((r["id"], r["lang"]) for r in part)
        for part in (train + held, rows(source.path, "train"))
    ]
    assert texts[0] == texts[1]


def test_where_a_curve_comes_down():
    reached = learning_by_group_size.reached
    curve = [(4.0, 1.0), (1.0, 2.0), (16.0, 0.5)]
    assert reached(curve, 1.5) == (pytest.approx(2.0), False)
    assert reached(curve, 0.75) == (pytest.approx(8.0), False)
    assert reached(curve, 2.0) == (1.0, True)
    assert reached(curve, 0.4) is None


def test_sharing_is_worth_what_tokens_say():
    flops = learning_by_group_size.flops_per_sample
    tokens = {k: 256 / k + 30 for k in (1, 2, 4, 8)}
    for k in (2, 4, 8):
        # A little less: the head's work on a caption stays the same.
        worth = tokens[1] / tokens[k]
        assert 0.9 * worth < flops(1) / flops(k) < worth
    assert learning_by_group_size.samples_for(0.5, 1, 1000) == 500
    assert learning_by_group_size.samples_for(0.5, 8, 1000) > 2000


def points(k: int, gain: float) -> list[dict]:
    """A made-up curve: loss falls with samples, `gain` times as fast."""
    found = []
    for budget in (0.25, 0.5, 1.0):
        samples = learning_by_group_size.samples_for(budget, k, 1000)
        runs = [
            {
                "seed": seed,
                "steps": samples // k,
                "samples": samples,
                "flops": samples * learning_by_group_size.flops_per_sample(k),
                "seconds": samples / 10,
                "loss": 3 - 0.2 * math.log(gain * budget) + 0.01 * seed,
            }
            for seed in (0, 1, 2)
        ]
        found.append({"budget": budget, "batch_size": 16, "rate": 0.01, "runs": runs})
    return found


def test_conclusion_and_plot(tmp_path):
    pytest.importorskip("matplotlib")
    curves = {1: points(1, 1.0), 2: [], 4: points(4, 2.0), 8: points(8, 0.5)}
    record = {"by_group_size": learning_by_group_size.conclude(curves)}
    found = record["by_group_size"]
    assert set(found) == {"1", "4", "8"}
    assert found["1"]["flops_to_reach"]["of_mean"]["part"] == pytest.approx(1.0, rel=1e-3)
    assert found["4"]["flops_to_reach"]["of_mean"]["part"] == pytest.approx(0.5, rel=2e-2)
    assert len(found["4"]["flops_to_reach"]["per_seed"]) == 3
    assert found["8"]["flops_to_reach"]["of_mean"] is None
    assert found["4"]["curve"][0]["loss"]["least"] < found["4"]["curve"][0]["loss"]["mean"]
    text = learning_by_group_size.table(record)
    assert "K=8 comes to loss" in text
    assert "not reached" in text
    picture = tmp_path / "plot.png"
    learning_by_group_size.plot(record, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_miniature_study(tmp_path, monkeypatch, capsys):
    """Through `maya train` on the mini dataset; what is done is not done again."""
    pytest.importorskip("matplotlib")
    study = learning_by_group_size
    monkeypatch.setattr(study, "climb", lambda measure, start: (measure([start]), start)[1])
    monkeypatch.setattr(study, "GROUP_SIZES", (1, 8))
    output = tmp_path / "learning.json"
    arguments = ["--budgets", "0.5", "1", "--seeds", "0", "--jobs", "1", "--captions", "64"]
    arguments += ["--held-out-concepts", "1", "--work", str(tmp_path / "work")]
    arguments += ["--output", str(output)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert study.main(arguments) == 0
    record = json.loads(output.read_text())
    assert output.with_suffix(".png").is_file()
    assert {r["group_size"] for r in record["runs"]} == {1, 8}
    assert all(1 < r["loss"] < 12 for r in record["runs"])
    assert record["held_out"]["captions"] == 8 * record["held_out"]["images"] > 0
    assert record["held_out"]["image_tokens"] == 16
    done = sorted((tmp_path / "work").rglob("*.json"))
    # And at the largest budget, one tries what the other has found best.
    assert len(done) == len(record["runs"]) == 2 * 2 * 2 + 1
    before = [path.stat().st_mtime_ns for path in done]
    assert study.main([*arguments, "--minutes", "0"]) == 0
    assert [path.stat().st_mtime_ns for path in done] == before
    assert json.loads(output.read_text())["runs"] == record["runs"]


# ------------------------------------------------------------------------------ gpu_full_size


def test_without_a_gpu_it_says_so(capsys):
    assert gpu_full_size.main([]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "needs a CUDA GPU" in printed.err


def test_full_size_is_the_published_size():
    from modeling_maya import MayaForConditionalGeneration

    config = gpu_full_size.full_size_config()
    assert config.image_seq_length == learning_by_group_size.IMAGE_TOKENS
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
        model.tie_weights()
    decoder = sum(p.numel() for p in model.model.language_model.parameters())
    assert decoder == 8_028_033_024


def small_config():
    from tests.helpers.tiny import tiny_config

    return tiny_config(
        text={"vocab_size": 512}, vision={"image_size": 16, "patch_size": 4}, image_token_id=7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", gpu_full_size.PRETRAIN)
def test_pretraining_step_on_a_small_model(dtype, way, monkeypatch):
    from tests.benchmarks import workload

    # What is compiled is looked at, not run: test_compiling does that.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **_: compiled.append(layer))
    steppers, compiled = [], []

    class Stepper(workload.Stepper):
        def __call__(self):
            steppers.append(self)
            return super().__call__()

    monkeypatch.setattr(workload, "Stepper", Stepper)
    found = gpu_full_size.pretrain(
        small_config(),
        torch.device("cpu"),
        dtype,
        images=2,
        steps=2,
        peak=1e12,
        workers=1,
        **way,
    )
    assert found["samples_per_step"] == 16
    layers = steppers[0].model.model.language_model.layers
    assert {layer.gradient_checkpointing for layer in layers} == {"checkpointing" in way}
    assert len(compiled) == ("compiled" in way) * len(layers)
    assert found["padding_share"] == 0
    assert 0 < found["model_flop_utilisation"] < 1
    step = found["seconds"]["step"]
    assert found["whole_pass_hours"] == pytest.approx(558_128 / 2 * step / 3600)


def test_finetune_step_on_a_small_model(monkeypatch):
    from tests.benchmarks import workload

    dtypes = set()

    class Stepper(workload.Stepper):
        def __call__(self):
            timed = super().__call__(keep_gradients=True)
            dtypes.update((p.dtype, self.gradients[n].dtype) for n, p in self.trained())
            return timed

        def trained(self):
            return [(n, p) for n, p in self.trainer.model.named_parameters() if p.requires_grad]

    monkeypatch.setattr(workload, "Stepper", Stepper)
    found = gpu_full_size.finetune(
        small_config(), torch.device("cpu"), images=2, steps=1, optimizer="adamw_torch"
    )
    assert dtypes == {(torch.bfloat16, torch.bfloat16)}
    assert found["samples_per_step"] == 16
    assert found["tokens_per_step"] > 16 * 60


def test_real_work_counts_what_is_seen():
    from maya_vlm.training.model.flops import visible_pairs

    # A prefix of 5 with branches of 2 and 3, in a row with 4 tokens of padding at position 0.
    positions = [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 0, 0, 0, 0]]
    row = {
        "input_ids": torch.zeros(1, 14, dtype=torch.long),
        "position_ids": torch.tensor(positions),
        "labels": torch.zeros(5),
        "padding": 4,
        "pixel_values": torch.zeros(1, 3, 2, 2),
    }
    assert gpu_full_size.real_work({"rows": [row]}) == {
        "tokens": 10,
        "pairs": visible_pairs(5, [2, 3]),
        "positions": 5,
        "images": 1,
    }


# ------------------------------------------------------------------------------ heads


def test_all_heads_compute_the_same(monkeypatch, tmp_path, capsys):
    from tests.benchmarks import heads

    # It forks, which this process, with its threads, would not survive.
    monkeypatch.setattr(heads, "measure_memory", lambda case: None)
    output = tmp_path / "heads.json"
    assert heads.main(["--quick", "--rounds", "2", "--output", str(output)]) == 0
    cases = json.loads(output.read_text())["cases"]
    assert set(cases) == set(heads.QUICK)
    for case in cases.values():
        assert set(case["seconds"]) == set(heads.HEADS)
        assert all(d["gradient"] < heads.TOLERANCE for d in case["relative_difference"].values())
        assert case["times_slower_than_maya"]["maya"] == 1.0
        assert {"machine", "versions", "package", "rounds"} <= set(case)
    monkeypatch.setattr(heads, "SCALE", 1.0)
    monkeypatch.setitem(heads.HEADS, "maya", lambda h, w, y: heads.whole(h * 0.5, w, y))
    with pytest.raises(ValueError, match="maya differs from the whole logits by"):
        heads.measure(heads.QUICK["learns"], rounds=1)


# ------------------------------------------------------------------------------ grouped_reading


@pytest.mark.slow
def test_readers_read_the_same(tmp_path, monkeypatch):
    from tests.benchmarks import grouped_reading

    output = tmp_path / "reading.json"
    arguments = ["--images", "40", "--rounds", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [grouped_reading.__file__, *arguments])
    assert grouped_reading.main() == 0
    record = json.loads(output.read_text())
    assert set(record["readers"]) == set(grouped_reading.READERS)
    assert set(record["times_faster"]) == set(grouped_reading.READERS[1:])
    original = grouped_reading.subprocess.run

    def lose_a_row(command, **options):
        done = original(command, **options)
        if "grouped" in command:
            done.stdout = json.dumps(json.loads(done.stdout) | {"rows": 319})
        return done

    monkeypatch.setattr(grouped_reading.subprocess, "run", lose_a_row)
    with pytest.raises(RuntimeError, match="did not read the same"):
        grouped_reading.main()


# --------------------------------------------------------------------------------- two_versions


@pytest.mark.slow
def test_one_version_beside_itself(tmp_path):
    from tests.benchmarks import two_versions

    maya, output = str(Path(sys.executable).parent / "maya"), tmp_path / "versions.json"
    quick = ["--rounds", "1", "--steps", "2", "2", "--limit", "4", "--rows", "200"]
    two_versions.main(["--before", maya, "--after", maya, *quick, "--output", str(output)])
    record = json.loads(output.read_text())
    assert record["weights_equal"]
    assert list(record["commands"]) == ["help", "train", "evaluate", "validate"]
    for command in record["commands"].values():
        ratio = (
            command["after"]["cpu_seconds"]["median"] / command["before"]["cpu_seconds"]["median"]
        )
        assert command["after_over_before"]["cpu_seconds"]["median"] == pytest.approx(
            ratio, rel=0.01
        )


def test_a_command_that_fails_is_told_with_its_output():
    from tests.benchmarks import two_versions

    with pytest.raises(RuntimeError, match=r"(?s)ended with 3:.*no such thing"):
        two_versions.run([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"])


# ------------------------------------------------------------------------------ asking_speed


def test_three_ways_of_asking_answer_the_same(tmp_path, capsys, monkeypatch):
    from tests.benchmarks import asking_speed

    output = tmp_path / "asking.json"
    monkeypatch.setitem(asking_speed.SMALL, "shared", asking_speed.Case(2, 2, 3, 3))
    assert asking_speed.main(["--quick", "--rounds", "1", "--output", str(output)]) == 0
    case = json.loads(output.read_text())["cases"]["shared"]
    assert set(case["seconds"]) == set(asking_speed.WAYS)
    assert set(case["times_faster_than"]) == {"one_by_one", "batched"}
    assert case["different_answers"] > 1
    assert {"machine", "versions", "package", "rounds"} <= set(case)
    monkeypatch.setitem(asking_speed.WAYS, "batched", lambda *given: ["?"] * 4)
    assert asking_speed.main(["--quick", "--rounds", "1", "--output", str(output)]) == 1
    assert "batched: 4 of 4 answers differ from one_by_one" in capsys.readouterr().err


# ------------------------------------------------------------------------------ answering_speed


@pytest.fixture
def answering(monkeypatch):
    """The benchmark, its decoding step traced as one graph, without the minute of a code generator."""
    from tests.benchmarks import answering_speed

    config = partial(answering_speed.CompileConfig, backend="eager")
    monkeypatch.setattr(answering_speed, "CompileConfig", config)
    return answering_speed


def test_three_ways_of_decoding_give_the_same_tokens(answering, tmp_path, capsys):
    output = tmp_path / "answering.json"
    arguments = ["--size", "tiny", "--rounds", "2", "--tokens", "5", "--output", str(output)]
    assert answering.main([*arguments, "--batch-sizes", "1", "2"]) == 0
    found = json.loads(output.read_text())["sizes"]["tiny"]
    assert {"machine", "versions", "package", "rounds", "dtype"} <= set(found)
    for case, size in zip(found["cases"], (1, 2), strict=True):
        assert case["batch_size"] == size
        assert case["different_tokens"] > 1
        assert case["same_tokens"] == {"static": 1.0, "compiled": 1.0}
        # One step of one shape, in both rounds.
        assert case["graphs"] == 1
        rates = {name: rate["median"] for name, rate in case["tokens_per_second"].items()}
        assert set(rates) == set(case["seconds_to_first_token"]) == set(answering.ways())
        assert case["times_dynamic"]["static"] == rates["static"] / rates["dynamic"]
    assert "tiny, batch size 2: dynamic" in capsys.readouterr().out


def test_the_page_quotes_the_speed_of_answering(answering):
    page = Path(__file__).parents[1] / "docs" / "load.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    mini = json.loads(answering.RESULT.read_text())["sizes"]["mini"]
    one, eight = mini["cases"]
    assert [case["graphs"] for case in mini["cases"]] == [1, 1]
    found = {
        way: [case["times_dynamic"][way] for case in (one, eight)] for way in one["same_tokens"]
    }
    first = [case["seconds_to_first_token"]["dynamic"]["median"] for case in (one, eight)]
    compiling = [case["first_call_seconds"]["compiled"] for case in (one, eight)]
    spreads = [
        each
        for case in (one, eight)
        for measured in ("tokens_per_second", "seconds_to_first_token")
        for each in case[measured].values()
    ]
    off = max(
        abs(each[quartile] / each["median"] - 1)
        for each in spreads
        for quartile in ("first_quartile", "third_quartile")
    )
    for words in (
        "mini's shape gives {:.2f} times the tokens per second of the default cache at batch size 1 and "
        "{:.2f} times at batch size 8".format(*found["compiled"]),
        "the static cache alone gives {:.2f} and {:.2f} times".format(*found["static"]),
        "comes after {:.2f} and {:.2f} s".format(*first),
        "compiling takes {:.0f} and {:.0f} s".format(*compiling),
        f"medians of {mini['rounds']} rounds on two busy cores",
        f"quartiles lie within {100 * off:.0f} %",
    ):
        assert words in text
    assert mini["package"]["modified"] is False


def test_mini_has_the_shape_of_the_recipe(answering):
    config = answering.mini_config()
    assert (config.text_config.hidden_size, config.image_seq_length) == (160, 16)
    assert config.projector_num_layers == 1


def test_times_are_those_between_tokens(answering, monkeypatch):
    model, processor = answering.prepare("tiny", torch.device("cpu"), torch.float32)
    ticks = iter(range(100))
    monkeypatch.setattr(answering.time, "perf_counter", lambda: next(ticks))
    timed = answering.ask(model, answering.prompts(processor, 2, model), 4, {})
    assert timed.tokens.shape == (2, 4)
    # A tick at the start, at the prompt and at each token.
    assert (timed.first, timed.rest) == (2, 3)


def test_other_tokens_of_a_static_cache_fail_the_command(answering, monkeypatch, tmp_path, capsys):
    ways = {"dynamic": {}, "static": {"suppress_tokens": list(range(0, 512, 2))}}
    monkeypatch.setattr(answering, "ways", lambda: ways)
    output = tmp_path / "answering.json"
    arguments = ["--size", "tiny", "--rounds", "1", "--tokens", "5", "--output", str(output)]
    assert answering.main(arguments) == 1
    assert "static:" in capsys.readouterr().err
    assert not output.exists()


def test_full_size_answers_need_a_gpu(answering, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert answering.main(["--size", "8b"]) == 1
    assert "expected a CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_decoder_and_head_once(answering, tied):
    from tests.helpers.tiny import tiny_model

    text = {"vocab_size": 96, "hidden_size": 32, "tie_word_embeddings": tied}
    model = tiny_model(text=text, tie_word_embeddings=tied)
    layers = sum(p.numel() for p in model.model.language_model.layers.parameters())
    norm = sum(p.numel() for p in model.model.language_model.norm.parameters())
    read = 4 * (layers + norm + 96 * 32)
    assert answering.bytes_per_step(model) == read
    case = {"batch_size": 8, "tokens_per_second": {"dynamic": {"median": 80.0}}}
    found = answering.limit(model, [case], bandwidth=20.0 * read)
    assert found["steps_per_second"] == pytest.approx(20)
    assert found["share_reached"] == {"8": {"dynamic": pytest.approx(0.5)}}
    assert answering.copy_bandwidth(torch.device("cpu"), size=2**16, repeats=2) > 0


# ------------------------------------------------------------------------------ quantised


def test_ways_of_loading_are_compared_with_float32(tmp_path, monkeypatch):
    from maya_vlm.training.inference.generation import Question
    from tests.benchmarks import quantised
    from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

    class Changed:
        @staticmethod
        def from_pretrained(folder, dtype, scale=1.0):
            model = auto.from_pretrained(folder, dtype=dtype)
            model.lm_head.weight.data *= scale
            if scale == 0:
                model.forward = lambda *args, **kwargs: torch.zeros(2).view(3)
            return model

    auto = quantised.AutoModelForImageTextToText
    monkeypatch.setattr(quantised, "AutoModelForImageTextToText", Changed)
    loading = {"float32": 1.0, "other scale": 1.5, "no kernel": 0.0}
    ways = {name: {"dtype": torch.float32, "scale": scale} for name, scale in loading.items()}
    monkeypatch.setattr(quantised, "ways", lambda: ways)
    folder = save_tiny_maya(tmp_path)
    given = ([tiny_picture()], [Question((0, "what is it"), 3)], ["a small house"])
    full, scaled, none = quantised.compare(str(folder), *given, answers=True)
    assert (full["logits"], full["next"], full["same"]) == (0.0, 1.0, 1.0)
    weights = sum(p.nbytes for p in auto.from_pretrained(folder).parameters())
    assert weights <= full["bytes"] < 1.1 * weights
    assert scaled["logits"] > 0.1
    assert none == {"way": "no kernel", "error": "shape '[3]' is invalid for input of size 2"}
    assert "same" not in quantised.compare(str(folder), *given, answers=False)[0]
