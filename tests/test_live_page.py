"""The live page in a browser: drawn on, clicked, read. Chromium is Debian's, run without a screen.

How long the page takes is measured by `python -m benchmarks.live_page`.
"""

import base64
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from live_server import ROOT, serving, small_network
from mnist import mnist_root
from PIL import Image
from strokes import HANDS

from neurospike.config import check_config
from neurospike.errors import PictureError
from neurospike.live.answering import Answerer, Choice, TestPictures
from neurospike.pictures import read_picture
from neurospike.predict import predict
from neurospike.training import Run
from neurospike.training.checkpoint import save_checkpoint
from neurospike.training.loading import build_model, load_trained

pytestmark = pytest.mark.thorough

pytest.importorskip("nicegui", reason="the live page needs nicegui: pip install -e '.[live]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return small_network(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def address(network):
    with serving("--model_path", network) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open pages, each a visitor of its own; none may have had an error by the end."""
    errors, contexts = [], []

    def open_page(address, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        context.set_default_timeout(60_000)  # machines are shared
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith((address, f"blob:{address}", "data:"))
                or (errors.append(f"not from this machine: {asked.url}"))
            ),
        )
        page.goto(address)
        page.locator(".pad canvas").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def draw(page, strokes):
    """Draw with the mouse, and wait until each stroke is answered."""
    box = page.locator(".pad canvas").bounding_box()
    for stroke in strokes:
        before = answers(page)
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()
        answered(page, before)


def answers(page):
    return int(page.locator(".stage").get_attribute("data-answers"))


def answered(page, before):
    page.wait_for_function(f"+document.querySelector('.stage').dataset.answers > {before}")


def shown(page):
    return int(page.locator(".digit").get_attribute("data-digit"))


def pick(page, label, option):
    page.locator(f"label:has-text('{label}')").click()
    page.locator(
        f".q-menu .q-item:text-is('{option}'), .q-menu .q-item:has-text('{option}')"
    ).click()


def test_over_http(address):
    with urllib.request.urlopen(address, timeout=60) as reply:
        text = reply.read().decode()
    assert "<title>NeuroSpike live</title>" in text and "mlp network trained on" in text
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", text)  # all is served from here
    other = urllib.request.Request(address, headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(other, timeout=60)


@pytest.mark.parametrize("path", ["", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"])
@pytest.mark.parametrize(
    ("origin", "host", "code"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", 200),  # a tunnel has another port than ours
        ("http://LOCALHOST:8080", "localhost:8080", 200),
        ("http://localhost:9000", "localhost:8080", 403),  # another program of this machine
        ("http://attacker.example", "127.0.0.1:8080", 403),
        ("null", "127.0.0.1:8080", 403),  # a file, or a frame that has no rights
        ("http://[", "127.0.0.1:8080", 403),
    ],
)
def test_pages_of_other_sites_are_refused(address, path, origin, host, code):
    asked = urllib.request.Request(address + path, headers={"Origin": origin, "Host": host})
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            assert reply.status == code
    except urllib.error.HTTPError as error:
        assert (error.code, error.read()) == (code, b"Invalid origin header")


def test_a_web_socket_of_another_site_is_refused(address):
    host = address.removeprefix("http://")
    for origin, expected in (("http://attacker.example", b" 403 "), (address, b" 101 ")):
        with socket.create_connection(host.split(":"), timeout=60) as connection:
            connection.sendall(
                "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
                f"Host: {host}\r\nOrigin: {origin}\r\nConnection: Upgrade\r\n"
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            assert expected in connection.recv(1000).splitlines()[0]


def test_ctrl_c_ends_an_upload_that_does_not_end(network):
    # Closed once the server has ended, as `serving` sees.
    with socket.socket() as connection, serving("--model_path", network) as url:
        with urllib.request.urlopen(url, timeout=60) as reply:
            target = re.search(rb"/_nicegui/client/[\w-]+/upload/\d+", reply.read())[0].decode()
        host = url.removeprefix("http://")
        name, port = host.split(":")
        connection.connect((name, int(port)))
        connection.sendall(
            f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9000\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode()
        )
        with urllib.request.urlopen(url, timeout=60) as reply:
            assert reply.status == 200


def test_the_page_is_there_where_nobody_reads_its_address(network):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reader, writer = os.pipe()
    os.close(reader)
    argv = ["--no_browser", f"--port={port}", f"--model_path={network}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "neurospike.live", *argv],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60).close()
            break
        time.sleep(0.1)
    time.sleep(0.5)  # it tells its address once it can be reached
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_twenty_digits_of_two_hands(visit, address):
    page = visit(address)
    right, wrong = 0, []
    for hand, digits in HANDS.items():
        for digit, strokes in digits.items():
            page.get_by_text("Clear").click()
            page.locator(".answer .empty").wait_for()
            draw(page, strokes)
            assert float(page.locator(".whole").get_attribute("data-ms")) > 0
            assert re.fullmatch(r"(> 99.9|\d+\.\d)% sure", page.locator(".sure").inner_text())
            right += shown(page) == digit
            wrong += [] if shown(page) == digit else [f"{hand} {digit} read as {shown(page)}"]
    assert right + len(wrong) == 20
    if mnist_root() is not None:
        assert right >= 17, wrong


def test_playing_pausing_and_stepping(visit, address):
    page = visit(address)
    stage, clock = page.locator(".stage"), page.locator(".clock")
    assert page.locator("button[aria-label=Play]").is_disabled()
    page.locator(".speed select").select_option(label="0.25×")
    draw(page, HANDS["round"][3])
    assert stage.get_attribute("data-playing") == "true"
    page.locator("button[aria-label=Pause]").click()
    assert stage.get_attribute("data-playing") == "false"
    held = int(stage.get_attribute("data-step"))
    page.wait_for_timeout(600)
    assert int(stage.get_attribute("data-step")) == held  # paused is paused
    page.locator("button[aria-label='One step on']").click()
    assert clock.inner_text() == f"step {held + 1} of 10"
    page.locator("button[aria-label='One step back']").click()
    assert clock.inner_text() == f"step {held} of 10"
    page.locator("input[aria-label='Time step']").fill("10")
    assert clock.inner_text() == "step 10 of 10"
    bars = page.locator(".bar.leads b").inner_text()
    assert int(bars) == shown(page)  # after the last step the leader is the answer
    page.locator(".speed select").select_option(label="4×")
    page.locator("button[aria-label=Play]").click()  # from the start again
    page.wait_for_function("document.querySelector('.stage').dataset.playing == 'false'")
    assert clock.inner_text() == "step 10 of 10"


def test_the_rasters_drawn_are_the_spikes(visit, address, network):
    page = visit(address, device_scale_factor=4)  # a row has pixels of its own
    page.locator("button[aria-label='Next test picture']").click()
    answered(page, 0)
    page.locator("input[aria-label='Time step']").fill("10")
    label = re.search(r"test picture 0: (\d)", page.locator(".which").inner_text())[1]
    truth = page.locator(".truth").inner_text()
    assert truth == ("✓ right" if shown(page) == int(label) else f"✗ it is {label}")
    trained = load_trained(network)
    picture = TestPictures(trained.dataset, trained.config.data_path).picture(0)[1]
    film = Answerer(trained).answer(picture, Choice("constant", 10))
    assert shown(page) == film["digit"]
    # All steps but the last, which stands on a ground of its own.
    seen = page.evaluate(RASTERS, {"rows": [layer["rows"] for layer in film["layers"]], "steps": 9})
    assert seen == [layer["spikes"][:9] for layer in film["layers"]]
    assert any(seen[0]) and any(seen[1])
    names = [text.split()[0] for text in page.locator(".layer h2").all_inner_texts()]
    assert names == ["hidden1", "hidden2"]


# By layer and step, the rows in whose middle something is drawn.
RASTERS = """({rows, steps}) => [...document.querySelectorAll('.raster')].map((canvas, k) => {
    const { width, height } = canvas;
    const drawn = (step, row) => {
        const x = (step + 0.5) * width / (steps + 1), y = (row + 0.5) * height / rows[k];
        return canvas.getContext('2d').getImageData(x, y, 1, 1).data[3] > 127;
    };
    return [...Array(steps).keys()].map((step) =>
        [...Array(rows[k]).keys()].filter((row) => drawn(step, row)));
})"""


# The colours of a canvas, 28 by 28 of them, each from the middle of a pixel of the picture.
COLOURS = """(canvas) => [...Array(28).keys()].map((row) => [...Array(28).keys()].map((column) => {
    const x = (column + 0.5) * canvas.width / 28, y = (row + 0.5) * canvas.height / 28;
    return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3).join();
}))"""


def test_a_network_that_reads_is_shown_reading(visit, tmp_path):
    config = check_config(
        {
            "dataset": "digits",
            "data_path": str(tmp_path),
            "model": {"hidden_size": 20, "recurrent": True},
            "encoding": {"kind": "rows"},
        },
        "the test",
    )
    torch.manual_seed(0)
    state = {"model": build_model(config).state_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint({**state, "record": {"dataset": "digits"}}, tmp_path / "reader.pth")
    picture = TestPictures("digits", tmp_path).picture(0)[1][0]
    with serving("--model_path", tmp_path / "reader.pth") as url:
        page = visit(url)
        assert "recurrent mlp network" in page.locator(".about").inner_text()
        assert page.get_by_label("Time steps").is_disabled()
        page.locator("button[aria-label='Next test picture']").click()
        answered(page, 0)
        page.locator("input[aria-label='Time step']").fill("10")
        assert "row 10 of 28 is read now" in page.locator(".input").inner_text()
        assert "read so far" in page.locator(".input").inner_text()
        whole, read = (canvas.evaluate(COLOURS) for canvas in page.locator(".pair canvas").all())
        dark = "11,16,32"
        bright = [[level > 0 for level in row] for row in picture.tolist()]
        for row in (*range(8), *range(12, 28)):  # beyond the frame round the tenth
            assert [colour != dark for colour in whole[row]] == bright[row]
            assert [colour != dark for colour in read[row]] == (
                bright[row] if row < 9 else [False] * 28
            )
        page.context.close()


def test_two_visitors_choose_for_themselves(visit, address):
    one, two = visit(address), visit(address)
    for page in (one, two):
        draw(page, HANDS["round"][7])
    before = answers(one)
    pick(one, "Coding", "latency")
    answered(one, before)
    before = answers(one)
    pick(one, "Backend", "reference")
    answered(one, before)
    before = answers(one)
    one.get_by_label("Time steps").fill("5")
    answered(one, before)
    assert one.locator(".clock").inner_text().endswith("of 5")
    assert "latency coding" in one.locator(".input").inner_text()
    assert "reference" in one.locator(".answer").inner_text()
    assert "learnt constant coding in 10 steps" in one.locator(".options").inner_text()
    draw(two, HANDS["round"][7])
    assert two.locator(".clock").inner_text().endswith("of 10")
    assert "constant coding" in two.locator(".input").inner_text()
    assert "numba" in two.locator(".answer").inner_text()
    before = answers(one)
    one.get_by_label("Time steps").fill("500")
    message = one.get_by_role("alert")
    for steps in (500, 0, -3):
        one.get_by_label("Time steps").fill(str(steps))
        message.get_by_text(f"steps must be 1 to 100, got {steps}").wait_for()
    one.get_by_label("Time steps").press("Tab")
    assert message.is_visible()
    assert one.locator(".clock").inner_text().endswith("of 5")
    one.get_by_label("Time steps").fill("5")
    message.wait_for(state="hidden")


def png(**options):
    """A picture of a dark, thick 1 on white, as a file's bytes."""
    image = Image.new(options.pop("mode", "L"), (120, 160), options.pop("paper", 255))
    image.paste(options.pop("ink", 0), (52, 20, 68, 140))
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **options})
    return file.getvalue()


HUGE = bytearray(png())
HUGE[16:24] = (30_000).to_bytes(4, "big") * 2
HUGE[29:33] = base64.b16decode("BADBAD00")
BAD = {
    "notes.txt": b"1, as a text",
    "empty.png": b"",
    "cut.png": png()[:90],
    "huge.png": bytes(HUGE),
    "blank.png": png(ink=255),
    "<img src=x onerror=alert(1)>.png": b"evil",
}


def test_bad_uploads_get_the_message_of_prediction(visit, address):
    page = visit(address)
    message = page.get_by_role("alert")
    for name, content in BAD.items():
        with pytest.raises(PictureError) as error:
            read_picture(name, content=content)
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        page.locator("input[type=file]").set_input_files(file)
        page.get_by_role("alert").filter(has_text=name).wait_for()
        assert message.inner_text() == str(error.value)
        assert page.locator(".answer .empty").is_visible()
    draw(page, HANDS["round"][1])
    assert not message.is_visible()  # the next good picture wipes it away


def test_good_uploads(visit, address, network):
    page, trained = visit(address), load_trained(network)
    kinds = {
        "cmyk.jpg": png(mode="CMYK", format="JPEG", paper=(0, 0, 0, 0), ink=(0, 0, 0, 255)),
        "film.gif": png(format="GIF", save_all=True, append_images=[Image.new("L", (120, 160))]),
        "plain.png": png(),
    }
    for name, content in kinds.items():
        before = answers(page)
        file = {"name": name, "mimeType": "image/*", "buffer": content}
        page.locator("input[type=file]").set_input_files(file)
        answered(page, before)
        assert page.locator(".which").inner_text().startswith(name)
        picture, _ = read_picture(name, "auto", trained.dataset, content=content)
        assert shown(page) == predict(trained, picture)[0].digit
    before = answers(page)
    page.locator(".pad canvas").evaluate(
        """(pad, data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
            pad.dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true}));
        }""",
        base64.b64encode(png()).decode(),
    )
    answered(page, before)
    assert page.locator(".which").inner_text() == "dropped.png"


def test_a_finger_on_a_phone(visit, address):
    page = visit(address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    box = page.locator(".pad canvas").bounding_box()
    finger = page.context.new_cdp_session(page)
    places = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + 20 + 20 * k} for k in range(12)]
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": places[:1]})
    for place in places[1:]:
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [place]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    answered(page, 0)
    if mnist_root() is not None:
        assert shown(page) == 1
    assert page.evaluate("scrollY") == 0  # drawing does not scroll
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == 390  # nothing hangs over the edge
    below = page.locator(".answer").bounding_box()
    assert below["y"] + below["height"] < 844  # the answer is seen without scrolling


def test_many_visitors_at_once_over_http(address):
    def fetch(_):
        with urllib.request.urlopen(address, timeout=60) as reply:
            return reply.status

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fetch, range(16))) == [200] * 16


def test_a_run_is_watched_as_it_goes(visit, network, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    trained = load_trained(network)
    with serving("--watch", folder, "--data_path", trained.config.data_path, hasty=True) as url:
        page = visit(url)
        state = page.locator(".status .state")
        state.get_by_text("waiting for the run to start").wait_for()
        draw_unanswered(page)
        page.get_by_text("the answer comes after the first epoch").wait_for()

        folder.rmdir()
        settings = trained.config.model_dump(mode="json")
        run = Run(folder, config=settings, record={"dataset": trained.dataset})
        for epoch, accuracy in ((1, 0.5), (2, 0.75)):
            before = answers(page)
            run.save_epoch({"model": trained.model.state_dict()}, is_best=True)
            run.log(
                "epoch",
                epoch=epoch,
                step=9 * epoch,
                train_loss=1 / epoch,
                validation_accuracy=accuracy,
                spike_rates={"hidden1": 0.2, "hidden2": 0.1},
                learning_rate=1e-3,
            )
            page.get_by_text(f"epoch {epoch} done, accuracy {accuracy:.2%}").wait_for()
            answered(page, before)  # the probe, by the new network
        curve = page.evaluate(CURVE)
        assert curve == [[1, 0.5], [2, 0.75]]
        run.log("test", accuracy=0.8)
        page.get_by_text("finished: test accuracy 80.00%").wait_for()
        shutil.rmtree(folder)
        page.get_by_text("is gone; what was read of it is shown").wait_for()
        page.context.close()


CURVE = """() => {
    const chart = [...document.querySelectorAll('.curves .card')].find(
        (card) => card.innerText.startsWith('Accuracy')).querySelector('.chart');
    return getElement(+chart.id.slice(1)).chart.getOption().series[0].data;
}"""


def draw_unanswered(page):
    box = page.locator(".pad canvas").bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 200, steps=5)
    page.mouse.up()
