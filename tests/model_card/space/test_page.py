"""The demo page in a real browser. It needs Chromium, playwright and gradio, which needs an older pillow than
constraints.txt has: run it in a separate environment with `pip install gradio playwright`."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from maya_vlm.model_card.space.start import wording
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "cat.png"
    tiny_picture(3).resize((200, 120)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return the address of a tiny Maya's page."""
    folder = save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "maya_vlm.training.cli", "space", str(folder)]
    with subprocess.Popen([*command, "--port", str(port)]) as server:
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                    break
                except urllib.error.URLError:
                    assert server.poll() is None
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        found = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    page.wait_for_selector("text=Ask about a picture")
    page.wait_for_selector("input[type=file]", state="attached")
    page.wait_for_timeout(1000)  # wait until gradio has attached its handlers
    return page


@pytest.mark.parametrize("width", [1200, 380])
def test_all_languages_at_the_width_of_a_desk_and_of_a_phone(browser, address, picture, width):
    page = opened(browser, address, width)
    page.set_input_files("input[type=file]", picture)
    page.wait_for_timeout(1000)
    page.click("button:has-text('All 10 languages')")
    page.wait_for_function("document.querySelectorAll('.answers h3').length == 10")
    sides = page.eval_on_selector_all(".answers p", "all => all.map(p => [p.lang, p.dir])")
    assert [lang for lang, side in sides if side == "rtl"] == ["ar", "ur"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("typed", "code"), [("हिन्", "hi"), ("العر", "ar")])
def test_a_question_by_keyboard_alone(browser, address, picture, typed, code):
    page = opened(browser, address, 1200)
    page.set_input_files("input[type=file]", picture)
    page.wait_for_timeout(1000)
    page.focus("input[aria-label='Language']")
    page.keyboard.press("Control+A")
    page.keyboard.type(typed)
    page.keyboard.press("Enter")
    page.wait_for_function(
        f"document.querySelector('textarea').placeholder == {json.dumps(wording()[code]['question'])}"
    )
    assert page.get_attribute("textarea", "dir") == ("rtl" if code == "ar" else "ltr")
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.tagName == 'TEXTAREA'")
    page.keyboard.press("Enter")
    page.wait_for_selector(f".answer p[lang={code}]")


def test_what_cannot_be_answered_is_told(browser, address):
    page = opened(browser, address, 1200)
    page.click("button:has-text('Ask')")
    page.wait_for_selector("text=Give a picture first.")
