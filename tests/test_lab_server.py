"""The server of `uturn explore --images`: whom it answers, and that its pictures are those of the package."""

import base64
import io
import json
import signal
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

import uturn as ut
from uturn.pages.laboratory.image_u_turns import image_u_turns
from uturn.pages.laboratory.server import LaboratoryServer

TURNS = "turns?items=3,12&back=4&steps=10&clones=2&seed=5"


@pytest.fixture(scope="module")
def server():
    with LaboratoryServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, path, method="GET", **headers):
    """Status, headers and text of an answer; `path` follows the token unless it begins with a slash."""
    with closing(HTTPConnection("127.0.0.1", server.server_port, timeout=120)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path if path.startswith("/") else f"/{server.token}/{path}", headers=named)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))


def test_pictures_are_those_of_the_package(server):
    status, headers, text = get(server, TURNS, Sec_Fetch_Site="same-origin", Origin=f"http://127.0.0.1:{server.server_port}")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert "Access-Control-Allow-Origin" not in headers
    source, backward = ut.sources.FashionMNISTSource(), ut.backward.DiffusionModel(steps=10)
    originals = next(source.blocks(np.array([3, 12]), 5, 1000))
    turned = ut.u_turn(originals, backward.undone(ut.corruption.Diffusion(), source), backward, 4 / 10, 5, clones=2)
    classifier = ut.fashion_mnist.load_classifier()
    import torch

    for k, found in enumerate(json.loads(text)["images"]):
        np.testing.assert_array_equal(pixels(found["picture"]), np.round((originals.images[k, 0] + 1) * 127.5))
        noisy = np.clip(turned.noisy.values[k, 0], -1, 1)
        np.testing.assert_array_equal(pixels(found["noisy"]), np.round((noisy + 1) * 127.5))
        for clone, one in enumerate(found["reconstructions"]):
            image = turned.reconstructions[k, clone]
            np.testing.assert_allclose(pixels(one["picture"]), (image[0] + 1) * 127.5, atol=0.51)
            shares = torch.softmax(classifier(torch.tensor(image[None])), 1)[0].detach().numpy()
            assert one["class"] == ut.fashion_mnist.CLASS_NAMES[shares.argmax()]
            assert one["probability"] == pytest.approx(shares.max(), abs=1e-3)
    assert get(server, TURNS)[2] == text  # the same state, the same pictures
    assert get(server, TURNS.replace("seed=5", "seed=6"))[2] != text


def test_noisy_images_alone_are_the_same():
    with_clones, without = (image_u_turns([7], 10, 20, clones, 1)["images"][0] for clones in (1, 0))
    assert with_clones["noisy"] == without["noisy"]
    assert without["reconstructions"] == []


def test_page_and_strip(server):
    status, headers, page = get(server, "", Sec_Fetch_Site="none")
    assert status == 200
    assert "data-served" in page
    assert "connect-src 'self'" in page
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    strip = json.loads(get(server, "pictures?first=980")[2])["pictures"]
    assert [one["item"] for one in strip] == list(range(980, 1000))


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("/", {}, 403, "wrong token"),
        (f"/{'x' * 32}/{TURNS}", {}, 403, "wrong token"),
        ("//[", {}, 403, "wrong token"),
        (TURNS, {"Host": "evil.example:{port}"}, 403, "another host"),
        (TURNS, {"Host": "127.0.0.1"}, 403, "another host"),
        ("", {"Host": "rebound.example"}, 403, "another host"),
        (TURNS, {"Origin": "http://evil.example"}, 403, "another page"),
        (TURNS, {"Origin": "null"}, 403, "another page"),
        (TURNS, {"Sec-Fetch-Site": "cross-site"}, 403, "another page"),
        (TURNS, {"Sec-Fetch-Site": "same-site"}, 403, "another page"),
        ("../etc/passwd", {}, 404, "nothing is at this address"),
        ("turns/", {}, 404, "nothing is at this address"),
        ("turns", {}, 400, "each of items, steps, back, clones, seed once"),
        (f"{TURNS}&seed=5", {}, 400, "once"),
        (f"{TURNS}&callback=x", {}, 400, "once"),
        (TURNS.replace("seed=5", "seed=-1"), {}, 400, "seed: expected an integer from 0 to 4294967295"),
        (TURNS.replace("seed=5", "seed=9" + "9" * 60), {}, 400, "seed"),
        (TURNS.replace("seed=5", "seed=%D9%A5"), {}, 400, "seed"),
        (TURNS.replace("clones=2", "clones=1000"), {}, 400, "clones: expected an integer from 0 to 16"),
        (TURNS.replace("3,12", "1,2,3,4,5"), {}, 400, "items: expected 1 to 4 integers from 0 to 999"),
        (TURNS.replace("3,12", "1000"), {}, 400, "items"),
        (TURNS.replace("3,12", "3,3"), {}, 400, "different numbers"),
        (TURNS.replace("steps=10", "steps=11"), {}, 400, "steps, back"),
        (TURNS.replace("back=4", "back=11"), {}, 400, "at most so many back"),
        (TURNS.replace("seed=5", "seed=" + "5" * 1000), {}, 400, "at most 500"),
    ],
)
def test_what_is_refused_is_told_in_one_line(server, path, headers, status, words):
    named = {name: value.format(port=server.server_port) for name, value in headers.items()}
    found, answered, text = get(server, path, **named)
    assert (found, text.count("\n")) == (status, 1)
    assert words in text
    assert server.token not in text
    assert "Access-Control-Allow-Origin" not in answered


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "HEAD"])
def test_other_methods_are_refused(server, method):
    assert get(server, TURNS, method)[0] == 501


def test_every_server_has_its_own_token_on_this_machine_alone(server):
    with LaboratoryServer() as other:
        assert other.token != server.token
        assert other.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32


def explore(*arguments):
    command = [sys.executable, "-m", "uturn.cli", "explore", *map(str, arguments)]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background of a shell ignore the signal
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)


def test_command_serves_until_it_is_interrupted():
    process = explore("--images")
    assert process.stdout.readline() == "the server runs until Ctrl-C\n"
    assert process.stdout.readline().startswith("next: open http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_options_that_cannot_be_used_are_told_in_one_line(server):
    for arguments, words in (
        (("--images", "--port", server.server_port), "another program uses it; give another --port, or none, for a free one"),
        (("--port", 8000), "goes with --images"),
        (("--images", "--out", "page.html"), "does not go with --images"),
        (("--images", "--port", 70000), "65535"),
    ):
        process = explore(*arguments)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors.count("\n")) == (2, 1)
        assert words in errors


# --- in the browser ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_page_shows_the_u_turns_of_its_python(server, browser, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    noticed = []
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("request", lambda request: request.url.startswith((server.address, "data:")) or noticed.append(request.url))
    page.goto(f"{server.address}#L=3&images=3&imageBack=3&imageSteps=10&imageTurns=2&imageSeed=5")
    words = page.locator("#image-words").filter(has_text="The class is kept")
    words.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#images-strip button").nth(12).click()
    page.locator("#image-back").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#image-rows:not(.old) .turns:nth-child(2) figure:nth-child(4) b").wait_for()
    assert "images=3%2C12&imageBack=4" in page.evaluate("location.hash")
    given = json.loads(get(server, TURNS)[2])["images"]
    rows = page.locator("#image-rows .turns")
    for k, one in enumerate(given):
        shown = rows.nth(k).locator("img").evaluate_all("(all) => all.map((one) => one.src)")
        assert shown == [one["picture"], one["noisy"], *(turn["picture"] for turn in one["reconstructions"])]
    kept = sum(turn["class"] == one["class"] for one in given for turn in one["reconstructions"])
    assert f"kept in {kept} of 4 reconstructions" in words.inner_text()
    made: dict = {}
    exec(page.locator("#image-python").text_content(), made)
    last = made["turned"].reconstructions[1, 1, 0]
    np.testing.assert_allclose(pixels(given[1]["reconstructions"][1]["picture"]), (last + 1) * 127.5, atol=0.51)
    page.locator("#image-draw").click()
    page.locator("#image-rows:not(.old) .turns:nth-child(2) figure:nth-child(4) b").wait_for()
    assert noticed == []
    page.close()
