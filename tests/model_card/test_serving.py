"""vLLM recipe: the keys of vllm-project/recipes in their order, and the command line of docs/serve.md."""

import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "model_card" / "serving" / "vllm_recipe.yaml"
KEYS = [
    "meta", "model", "features", "opt_in_features", "variants", "compatible_strategies", "guide",
]  # fmt: skip
META = ["title", "slug", "provider", "description", "date_added", "tasks", "hardware"]
MODEL = [
    "model_id", "min_vllm_version", "architecture", "parameter_count", "context_length", "base_args",
    "base_env",
]  # fmt: skip


def test_keys_are_those_of_the_format_in_their_order():
    recipe = yaml.safe_load(RECIPE.read_text())
    assert list(recipe) == KEYS
    assert list(recipe["meta"]) == META
    assert list(recipe["model"]) == MODEL
    assert recipe["variants"]["default"]["vram_minimum_gb"] >= 8.1 * 2 * 1.2 - 1
    # No recipe has been run on a GPU yet.
    assert recipe["meta"]["hardware"] == {}


def test_the_command_line_is_that_of_the_page():
    model = yaml.safe_load(RECIPE.read_text())["model"]
    text = (ROOT / "docs" / "serve.md").read_text()
    (block,) = [part for part in text.split("```") if "vllm serve" in part and "bash" in part]
    words = shlex.split(block.removeprefix("bash\n").replace("\\\n", " "))
    assert words[0] == "VLLM_MEDIA_URL_ALLOW_REDIRECTS=" + model["base_env"].popitem()[1]
    assert words[1:4] == ["vllm", "serve", model["model_id"]]
    assert words[4:] == model["base_args"]
