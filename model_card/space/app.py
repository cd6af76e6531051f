"""A page for a picture, a question, and a model's answer in one language or in all of them.

On a Space, the file `space.json` next to this one names the model and the languages. On ZeroGPU, the
functions that compute answers have its decorator.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch

if __package__:
    from .asking import Asking, direction
else:  # a Space runs this file as a script
    from asking import Asking, direction  # type: ignore[no-redef]

try:  # ZeroGPU's package, which only ZeroGPU machines have
    from spaces import GPU
except ImportError:

    def GPU(function: Any) -> Any:
        return function


STYLE = """
.answer { font-size: 1.2rem; min-height: 3rem; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .75rem; }
.answer h3 { margin: 0; font-size: 1rem; opacity: .75; }
.answer p { margin: .1rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def make_page(asking: Asking, title: str, examples: list[str]) -> gr.Blocks:
    """Return the page of a model. `examples` are files of pictures."""
    names = [(words["name"], code) for code, words in asking.languages.items()]
    first = names[0][1]

    @GPU
    def answer(picture: str | None, text: str | None, language: str) -> Iterator[str]:
        with refusals():
            for said in asking.answer(given(picture), text, language):
                yield f'<div class="answer">{asking.paragraph(said, language)}</div>'

    @GPU
    def answer_all(picture: str | None, text: str | None) -> Iterator[str]:
        with refusals():
            for said in asking.answers(given(picture), text):
                yield f'<div class="answer answers">{asking.table(said)}</div>'

    def turn_question(language: str) -> Any:
        hint = asking.languages[language]["question"]
        return gr.update(rtl=direction(language) == "rtl", placeholder=hint)

    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}\nAsk about a picture, in your own language.")
        with gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(type="filepath", label="Picture", height=320)
                gr.Examples([[one] for one in examples], [picture], label="Examples")
            with gr.Column(min_width=300):
                language = gr.Dropdown(names, value=first, label="Language")
                question = gr.Textbox(
                    label="Question", placeholder=asking.languages[first]["question"], max_lines=4
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary")
                    ask_all = gr.Button(f"All {len(names)} languages")
                said = gr.HTML('<div class="answer"></div>', label="Answer")
        language.change(turn_question, language, question, show_progress="hidden")
        gr.on([ask.click, question.submit], answer, [picture, question, language], said)
        ask_all.click(answer_all, [picture, question], said)
    return page


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Show the reason why there is no answer, instead of the word "Error"."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(" ".join(str(error).split())[:500], duration=None) from error


def given(picture: str | None) -> str:
    """Return the picture's file. Raise ValueError if there is none."""
    if not picture:
        raise ValueError("Give a picture first.")
    return picture


def main() -> None:
    """Load the model that `space.json` names, and show its page. A Space runs this."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = Path(__file__).resolve().parent
    space = json.loads((folder / "space.json").read_text(encoding="utf-8"))
    options = {"revision": space["revision"], "trust_remote_code": space["trust_remote_code"]}
    gpu = torch.cuda.is_available()
    network = AutoModelForImageTextToText.from_pretrained(
        space["model"], dtype="auto" if gpu else torch.float32, **options
    )
    processor = AutoProcessor.from_pretrained(space["model"], **options)
    asking = Asking(network.to("cuda" if gpu else "cpu").eval(), processor, space["languages"])
    examples = sorted(str(path) for path in (folder / "examples").glob("*.png"))
    make_page(asking, space["title"], examples).launch(css=STYLE)


if __name__ == "__main__":
    main()
