"""The page in a real browser: a picture is dropped, its classes appear as bars."""

import base64
import json
import urllib.request

import browser_pipe
import numpy as np
import pytest
from serve_process import Server, half_plus, png

pytest.importorskip("starlette")
pytestmark = pytest.mark.skipif(browser_pipe.installed() is None, reason="no Chromium is installed")

NAMES = "[...document.querySelectorAll('#list li span:first-child')].map(e => e.textContent)"
SHARES = "[...document.querySelectorAll('#list li span:last-child')].map(e => parseFloat(e.textContent))"
WIDTHS = "[...document.querySelectorAll('.track div')].map(e => parseFloat(e.style.width))"


@pytest.fixture(scope="module")
def server(exported):
    half_plus(exported.parent.parent / "zahlen" / "1", 3)
    with Server(exported.parent.parent, grpc=False) as running:
        yield running


@pytest.fixture(scope="module")
def page(server):
    with browser_pipe.Browser() as browser:
        browser.open(f"http://127.0.0.1:{server.port}/")
        yield browser


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(png(np.random.default_rng(1).integers(0, 255, (40, 60, 3))))
    return path


def answer(server, path):
    body = json.dumps({"instances": [{"b64": base64.b64encode(path.read_bytes()).decode()}]}).encode()
    address = f"http://127.0.0.1:{server.port}/v1/models/animals:predict"
    with urllib.request.urlopen(address, body, timeout=20) as response:
        return json.load(response)["predictions"][0]


def test_a_dropped_picture_shows_its_classes_as_bars_and_names_as_text(page, server, picture):
    page.drop(picture, "document.getElementById('drop')")
    page.until("document.querySelectorAll('#list li').length === 5")
    expected = answer(server, picture)
    assert page.evaluate(NAMES) == expected["classes"]
    assert page.evaluate(SHARES) == [round(100 * score, 1) for score in expected["scores"]]
    np.testing.assert_allclose(page.evaluate(WIDTHS), 100 * np.array(expected["scores"]), atol=0.01)
    assert page.evaluate("document.getElementById('title').textContent") == expected["classes"][0]
    assert page.evaluate("document.querySelectorAll('#list b').length") == 0  # <b>bird</b> is text
    assert page.evaluate("document.getElementById('picture').naturalWidth") == 60


def test_a_picture_can_be_chosen_and_a_file_that_is_none_says_so(page, picture, tmp_path):
    wrong = tmp_path / "letter.txt"
    wrong.write_text("no picture")
    page.choose(wrong, "document.getElementById('file')")
    page.until("!document.getElementById('error').hidden")
    assert "not a JPEG, PNG, BMP, GIF or WebP file" in page.evaluate("document.getElementById('error').textContent")
    page.choose(picture, "document.getElementById('file')")
    page.until("document.getElementById('error').hidden && document.querySelectorAll('#list li').length === 5")


def test_the_keyboard_reaches_the_model_and_the_file(page):
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(2):
        page.press("Tab", 9)
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["model", "file"]
    assert page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"


def test_a_model_of_numbers_says_that_it_takes_no_pictures(page, picture):
    page.evaluate("document.getElementById('model').value = 'zahlen'")
    page.evaluate("document.getElementById('model').dispatchEvent(new Event('change'))")
    page.until("!document.getElementById('error').hidden")
    assert "takes numbers" in page.evaluate("document.getElementById('error').textContent")


def test_nothing_is_fetched_from_elsewhere_and_injected_code_does_not_run(page, server):
    own = f"http://127.0.0.1:{server.port}"
    asked = [e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked
    assert [url for url in asked if not url.startswith((own, "blob:", "data:", "about:"))] == []
    errors = [e for e in page.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert [e for e in errors if "400" not in str(e)] == []  # the text file above is answered 400
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"x:\" onerror=\"window.harmed = 1\">');"
        "var s = document.createElement('script'); s.textContent = 'window.harmed = 2'; document.body.append(s);"
    )
    assert page.evaluate("window.harmed === undefined")
