"""Model cards: equal to the folder's files; missing facts are errors or left out."""

import hashlib
import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from maya_vlm.model_card.cards.model import (
    MARKER,
    MINI_DATA,
    base_models,
    licence_texts,
    model_card,
)
from maya_vlm.model_card.cards.scores import weaknesses
from maya_vlm.training.common.files import files_sha256
from maya_vlm.training.common.provenance import provenance
from maya_vlm.training.data.mini_dataset.sources import SOURCES
from maya_vlm.training.evaluation.results import FORMAT, write_results
from maya_vlm.training.evaluation.scoring.intervals import wilson
from modeling_maya.llava_cohere.convert import convert
from tests.evaluation.answers import results_of
from tests.helpers.tiny import PROJECTORS
from tests.helpers.tiny_maya import save_tiny_maya
from tests.modeling_maya.llava_cohere import tiny_original as original

RECIPE = {
    "model": {
        "vision_tower": "training/bases/mini/vision_tower",
        "language_model": "training/bases/mini/language_model",
    },
    "stages": [
        {
            "name": "pretrain",
            "batch_size": 24,
            "data": [{"path": "training/data/mini", "config": "all", "languages": ["en", "hi"]}],
            "train": [
                {"pattern": "multi_modal_projector", "rate": 0.003},
                {"pattern": ".*", "rate": "frozen"},
            ],
            "args": {"max_steps": 150},
        },
        {
            "name": "finetune",
            "batch_size": 24,
            "data": [
                {
                    "path": "training/data/mini",
                    "config": "instruct",
                    "languages": ["en", "hi", "ur"],
                }
            ],
            "train": [{"pattern": ".*", "rate": 0.001}],
            "args": {"num_train_epochs": 2},
        },
    ],
}


@pytest.fixture
def folder(tmp_path):
    folder = save_tiny_maya(tmp_path / "tiny")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    runs = {"model": ["A", "A", "B", "B", "x", "B"], "blind": ["B"] * 6}
    write_results(
        results_of(runs, files_sha256(folder.glob("*.safetensors"))), folder / "results.json"
    )
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [("mlp", "a 2-layer projector and"), ("q_former", "a 2-layer Q-Former and"),
     ("pixel_shuffle", "(pixel shuffle) and"), ("gated_cross_attention", "gated cross-attention and")],
)  # fmt: skip
def test_the_card_names_the_projector(tmp_path, kind, words):
    folder = save_tiny_maya(tmp_path / "tiny", **PROJECTORS[kind])
    assert words in model_card(folder, "user/tiny", licence="mit").replace("\n", " ")


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_is_filled_from_results_recipe_and_config(folder):
    card = model_card(folder, "user/maya-tiny")
    head = head_of(card)
    assert head["language"] == ["en", "hi", "ur"]
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "image-text-to-text"
    assert head["license"] == "other"
    assert "custom_code" in head["tags"]
    (index,) = head["model-index"]
    found = {
        (r["task"]["name"], r["metrics"][0]["name"]): r["metrics"][0]["value"]
        for r in index["results"]
    }
    assert found["Choice, old pictures", "accuracy, mean of all (2)"] == 50.0
    assert found["Choice, new pictures", "accuracy, mean of all (2)"] == 0.0
    assert MARKER in card
    low, high = wilson(2, 2)
    assert f"| `en` (n = 2) | 100.0 [{100 * low:.1f}, {100 * high:.1f}] | 0.0 |" in card
    assert "| pretrain | 150 | 24 | en hi | data/mini `all` |" in card
    assert "| finetune | 2 epochs |" in card
    assert "4,321 parameters, 9 image tokens" in card
    assert "English, Hindi, Urdu" in card
    assert f"Evaluated on Letters with {provenance()['machine']['processor']}" in card
    assert str(folder) not in card
    changed = json.loads((folder / "results.json").read_text())
    row = next(row for row in changed["rows"] if row["language"] == "en" and row["low"] is not None)
    row["value"] = 0.123
    (folder / "results.json").write_text(json.dumps(changed))
    assert "12.3 [" in model_card(folder, "user/maya-tiny")


def test_card_is_valid_for_the_hubs_own_reader(folder):
    from huggingface_hub import ModelCard

    data = ModelCard(model_card(folder, "user/maya-tiny"), ignore_metadata_errors=False).data
    assert data.model_name == "maya-tiny"
    assert [r.metric_type for r in data.eval_results] == ["accuracy"] * len(data.eval_results)


def test_what_does_not_work_is_read_off_the_intervals(folder):
    runs = {"model": ["A", "A", "B", "B", "x", "B"], "blind": ["B"] * 6}
    lines = weaknesses(results_of(runs))
    assert lines == [
        "Choice, old pictures: in every language not clearly better than not seeing the picture.",
        "Choice, new pictures: in every language not clearly better than not seeing the picture.",
        "Of 6 answers to Letters: 16.7 % unparsable, 0.0 % empty, 0.0 % cut by the limit, "
        "50.0 % in the script asked for.",
    ]
    results = results_of(runs)
    for row in results["rows"]:
        if row["language"] == "en" and row["subset"] == "old/choice" and row["run"] != "chance":
            row |= {"low": 0.9, "high": 1.0} if row["run"] == "model" else {"low": 0.0, "high": 0.4}
    assert weaknesses(results)[0] == (
        "Choice, old pictures: in hi not clearly better than not seeing the picture."
    )


def test_results_of_other_weights_are_refused(folder):
    changed = json.loads((folder / "results.json").read_text())
    changed["model"]["weights_sha256"] = "0" * 64
    (folder / "results.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="of other weights"):
        model_card(folder, "user/maya-tiny")


def test_without_results_the_card_says_so(folder):
    (folder / "results.json").unlink()
    card = model_card(folder, "user/maya-tiny")
    assert "It has not been evaluated." in card
    assert "model-index" not in head_of(card)


def test_card_of_converted_weights_says_what_from_which_revision(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "converted"
    original.write_checkpoint(source)
    report = convert(source, folder, log=lambda line: None)
    card = model_card(folder, "user/maya-converted")
    assert "converted from `source`" in card
    assert "a copy without a recorded revision" in card
    weights = (source / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in card
    assert f"{report['parameters']:,} parameters" in card

    record = json.loads((folder / "conversion.json").read_text())
    record["converted_from"] |= {"name": "someone/maya", "commit": "0123abcd"}
    (folder / "conversion.json").write_text(json.dumps(record))
    card = model_card(folder, "user/maya-converted")
    assert "revision `0123abcd`" in card
    assert head_of(card)["base_model"] == ["someone/maya"]

    (folder / "conversion.json").write_text("{}")
    with pytest.raises(ValueError, match=r"conversion\.json: converted_from: missing"):
        model_card(folder, "user/maya-converted")


@pytest.mark.parametrize(
    ("config", "bases", "licence"),
    [
        ({"text_config": {"model_type": "cohere", "vocab_size": 256000}}, {}, "cc-by-nc-4.0"),
        ({}, {"language_model": "CohereLabs/aya-23-8B"}, "cc-by-nc-4.0"),
        ({}, {"language_model": "someone/other"}, "unknown"),
        ({}, RECIPE["model"], "other"),
        ({}, {}, "unknown"),
    ],
)
def test_licence_follows_from_the_bases(tmp_path, config, bases, licence):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "maya", **config}))
    if bases:
        recipe = {**RECIPE, "model": bases}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    head = head_of(model_card(tmp_path, "user/x"))
    assert head["license"] == licence
    assert ("extra_gated_prompt" in head) == (licence == "cc-by-nc-4.0")


def other_bases(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"model_type": "qwen2"}}))
    model = {"vision_tower": "google/tower", "language_model": "org/decoder"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "model": model}))
    return tmp_path


def test_a_licence_can_be_stated_for_other_bases(tmp_path):
    folder = other_bases(tmp_path)
    card = model_card(folder, "user/x", licence="apache-2.0")
    assert head_of(card)["license"] == "apache-2.0"
    assert "apache-2.0. Stated by its publisher." in card
    # If all bases have one licence, it is used; with different licences, none is.
    same = dict.fromkeys(("google/tower", "org/decoder"), "mit")
    card = model_card(folder, "user/x", base_licences=same)
    assert head_of(card)["license"] == "mit"
    assert "`org/decoder` is mit; `google/tower` is mit" in card
    mixed = {"google/tower": "mit", "org/decoder": "gemma"}
    assert head_of(model_card(folder, "user/x", base_licences=mixed))["license"] == "unknown"


def test_a_licence_that_the_bases_do_not_allow_is_refused(folder, tmp_path):
    terms = {"org/decoder": "cc-by-nc-sa-4.0"}
    with pytest.raises(
        ValueError, match=r"expected cc-by-nc-sa-4.0 or another non-commercial licence"
    ):
        model_card(other_bases(tmp_path), "user/x", licence="mit", base_licences=terms)
    with pytest.raises(ValueError, match=r"licence: expected other, found mit: the mini bases"):
        model_card(folder, "user/x", licence="mit")
    config = {"text_config": {"model_type": "cohere", "vocab_size": 256_000}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"expected cc-by-nc-4.0, found apache-2.0: the decoder"):
        model_card(tmp_path, "user/x", licence="apache-2.0")


def test_languages_are_those_of_the_log_where_the_recipe_keeps_all(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    entry = {"loss": 1.0, "sw/loss": 1.0, "hi/loss": 1.0, "und/loss": 1.0, "eval_fr/loss": 1.0}
    (tmp_path / "training_log.json").write_text(json.dumps({"log": [entry]}))
    assert set(head_of(model_card(tmp_path, "user/x"))["language"]) == {"sw", "hi"}


def test_hours_are_those_of_the_logs(folder):
    assert "Training took" not in model_card(folder, "user/x")
    for name, seconds, processes in (("pretrain", 1800.0, 2), ("finetune", 3600.0, 1)):
        (folder / name).mkdir()
        log = {"seconds": seconds, "processes": processes, "device": "cpu"}
        (folder / name / "training_log.json").write_text(json.dumps(log))
    card = model_card(folder, "user/x")
    assert "Training took 1.5 hours, 2 CPU process-hours." in card


def test_items_of_a_task_without_parts_are_named_by_their_subsets(folder):
    results = json.loads((folder / "results.json").read_text())
    (info,) = results["tasks"].values()
    info["parts"] = {}
    info["data"]["items"] = dict.fromkeys(info["subsets"], 500)
    (folder / "results.json").write_text(json.dumps(results))
    card = model_card(folder, "user/x")
    assert all(f"500 {title}" in card for title in info["subsets"].values())


def test_metadata_are_valid_for_huggingface_hub(folder):
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(folder, "user/x"))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert {result.metric_type for result in card.data.eval_results} >= {"accuracy"}
    assert card.data.eval_results[0].task_type == "image-text-to-text"


def test_mini_weights_carry_the_licence_texts(folder):
    text = licence_texts(folder)
    assert text is not None
    for words in (
        "Apache License",
        "Permission is hereby granted",
        "UNICODE LICENSE V3",
        "Microsoft",
        "Attribution 4.0 International",
        "Attribution-ShareAlike 4.0 International",
        "EmojiOne and the EmojiTwo contributors",
    ):
        assert words.lower() in text.lower(), words
    assert "Twemoji" not in text
    (folder / "recipe.yaml").unlink()
    assert licence_texts(folder) is None


def test_weights_of_the_bases_that_have_not_met_carry_the_same_licence_texts(folder):
    expected = licence_texts(folder)
    apart = yaml.safe_dump(RECIPE).replace("bases/mini/vision_tower", "bases/apart/siglip")
    apart = apart.replace("bases/mini/language_model", "bases/apart/language_model")
    assert apart.count("bases/apart/") == 2
    (folder / "recipe.yaml").write_text(apart)
    assert licence_texts(folder) == expected
    (folder / "recipe.yaml").write_text(apart.replace("bases/apart/siglip", "bases/other/siglip"))
    assert licence_texts(folder) is None


def test_every_style_of_the_trained_splits_is_credited(folder):
    styles = json.loads((MINI_DATA / "manifest.json").read_text())["styles"]
    recipe = json.loads(json.dumps(RECIPE))
    for split in ("train", "validation"):
        recipe["stages"][1]["data"][0]["split"] = split
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        card = model_card(folder, "user/x")
        statement = card[card.index("## Licence") :]
        for style, entry in styles.items():
            named = f"{SOURCES[style].title} ({SOURCES[style].licence})" in statement
            assert named == (entry["split"] in ("train", split)), style
        assert "EmojiOne, first version is share-alike" in statement
        assert ("OpenMoji is share-alike" in statement) == (split == "validation")
        head = head_of(card)
        assert head["license_name"] == (
            "apache-2.0-and-cc-by-4.0-and-cc-by-sa-4.0-and-mit-and-unicode-3.0"
        )


def test_stages_say_what_the_recipe_says(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "maya"}')
    recipe = json.loads(json.dumps(RECIPE))
    first, second = recipe["stages"]
    first["data"] = [{"path": f"{lang}.json", "language": lang} for lang in ("fr", "zh")]
    first["args"] = {"max_steps": -1}
    second["adapter"] = {"type": "dora", "rate": 0.02, "r": 128, "alpha": 256, "quantize": "nf4"}
    second["adapter"]["lora_plus_ratio"] = 16
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = model_card(tmp_path, "user/x")
    assert "| pretrain | 1 epoch | 24 | fr zh |" in card
    assert "| finetune | 2 epochs |" in card
    assert (
        "DoRA on the decoder (r 128, alpha 256, B learns 16 times as fast, weights in nf4) 0.02"
    ) in card
    assert head_of(card)["language"] == ["en", "zh", "fr", "hi", "ur"]


def test_mini_licence_needs_nothing_but_mini_data(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "maya"}')
    recipe = json.loads(json.dumps(RECIPE))
    recipe["stages"][0]["data"].append({"path": "someone/photos", "languages": ["en"]})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert head_of(model_card(tmp_path, "user/x"))["license"] == "unknown"


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("config.json", None, FileNotFoundError, "has no config.json"),
        ("config.json", "{", ValueError, ": not JSON: "),
        (
            "results.json",
            '{"format": "x"}',
            ValueError,
            "expected the format 'maya-results-2', found 'x'",
        ),
        ("recipe.yaml", "a: [", ValueError, ": not YAML: "),
    ],
)
def test_refuses_broken_files_in_one_line(folder, name, content, error, words):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(error, match=words) as caught:
        model_card(folder, "user/x")
    assert "\n" not in str(caught.value)


HOSTILE = [
    "[x](javascript:alert(1))",
    "a\n---\nlicense: mit\n---\n# Other",
    "<script>alert(1)</script>",
    "a | b",
    "`tick` **bold**",
    "\x1b[2J\u202eabc",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_every_place_of_a_card(tmp_path, name):
    folder = save_tiny_maya(tmp_path / "tiny")
    recipe = json.loads(json.dumps(RECIPE))
    recipe["model"]["language_model"] = f"org/{name}"
    for stage in recipe["stages"]:
        stage["name"] = name
        stage["data"][0] |= {"path": f"org/{name}", "config": name, "languages": [name]}
        stage["train"][0]["pattern"] = name
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    results = json.loads(
        json.dumps(results_of({"model": ["A"] * 6}, files_sha256(folder.glob("*.safetensors"))))
    )
    for info in results["tasks"].values():
        info["title"] = name
        info["data"] |= {"name": name, "split": name, "styles": [name]}
        info["subsets"] = dict.fromkeys(info["subsets"], name)
        info["parts"] = dict.fromkeys(info["parts"], name)
        info["metrics"][info["metric"]]["title"] = name
    (folder / "results.json").write_text(json.dumps(results))
    card = model_card(folder, "user/tiny")
    check_card(card, name)
    assert card.count("\n---\n") == 1


def check_card(card, name):
    _, head, body = card.split("---\n", 2)
    assert all(line.isprintable() for line in card.split("\n"))
    assert isinstance(yaml.safe_load(head), dict)
    for markup in ("[x](javascript", "<script", "\nlicense: mit", "**bold**", "\n# Other"):
        assert markup not in body.replace("`**bold**`", "")
    assert "a | b" not in body or name != "a | b"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", {"stages": [{}]}),
        ("recipe.yaml", {"stages": {"a": 1}}),
        ("recipe.yaml", {"model": []}),
        ("results.json", {"format": FORMAT}),
        ("results.json", {"format": FORMAT, "model": None}),
        ("conversion.json", {"converted_from": {"name": 1, "commit": None, "kind": "x"}}),
        (
            "conversion.json",
            {"converted_from": {"name": "a/b", "commit": None, "kind": "x", "files": [3]}},
        ),
    ],
)
def test_files_of_another_shape_are_one_line(tmp_path, name, content):
    folder = save_tiny_maya(tmp_path / "tiny")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=name) as caught:
        model_card(folder, "user/tiny")
    assert str(caught.value).isprintable()


def test_card_of_a_projector_has_the_scores_of_the_whole_model(folder, tmp_path):
    recipe = {**RECIPE, "model": {"vision_tower": "copies/tower", "language_model": "/a/decoder"}}
    part = tmp_path / "part"
    part.mkdir()
    (part / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = json.loads((folder / "config.json").read_text())
    bases = {
        part: {"name": f"user/{part}", "commit": "c0ffee", "dtype": "float32", "sha256": "0" * 64}
        for part in ("language_model", "vision_tower")
    }
    (part / "config.json").write_text(json.dumps({**config, "bases": bases}))
    tensors = {"model.multi_modal_projector.layers.0.bias": torch.zeros(7)}
    save_file(tensors, part / "projector.safetensors")
    assert base_models(part) == ["user/language_model", "user/vision_tower"]
    terms = {"user/language_model": "apache-2.0"}
    card = model_card(part, "user/maya-projector", base_licences=terms, whole=folder)
    head = head_of(card)
    assert head["base_model"] == ["user/language_model", "user/vision_tower"]
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "maya-vlm"
    assert len(head["model-index"]) == 1
    assert "7 parameters in this projector" in card
    assert "/a/decoder" not in card
    assert "copies/tower" not in card
    assert "It has not been evaluated." not in card
    assert "maya convert user/maya-projector maya-projector\n" in card
    terms = {"user/language_model": "cc-by-nc-4.0"}
    with pytest.raises(ValueError, match=r"licence: expected cc-by-nc-4.0"):
        model_card(part, "user/p", licence="mit", base_licences=terms, whole=folder)
    del bases["vision_tower"]["commit"]
    (part / "config.json").write_text(json.dumps({**config, "bases": bases}))
    with pytest.raises(
        ValueError, match=r"config.json: bases.vision_tower.commit: missing"
    ) as told:
        model_card(part, "user/p", whole=folder)
    assert "\n" not in str(told.value)


def test_card_of_a_stage_lists_no_later_stage(folder):
    (folder / "training_log.json").write_text(json.dumps({"stage": "pretrain", "log": []}))
    card = model_card(folder, "user/maya-tiny")
    assert "| pretrain | 150 |" in card
    assert "| finetune |" not in card
    assert head_of(card)["language"] == ["en", "hi"]
