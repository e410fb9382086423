"""How long the live page takes: `python -m benchmarks.live_page [--model_path FILE]`.

Serves the page, opens it in a headless Chromium three times with nothing in its cache, and draws
strokes on it. Prints how long each page took to be ready, and from pen up to the answer on the
screen. Needs the extra `dev` and a Chromium.
"""

import argparse
import shutil
import signal
import statistics
import subprocess
import sys
import time

from neurospike.predict import MODEL

STROKES = 20
PAGES = 3


def main(argv: list[str] | None = None) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.live_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_path", default=MODEL)
    options = parser.parse_args(argv)
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "neurospike.live", "--port", "0", "--no_browser"]
    command += ["--model_path", options.model_path]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = server.stdout.readline().split()[1]
    opened, answered = [], []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(PAGES):
            page = browser.new_context().new_page()
            start = time.perf_counter()
            page.goto(address)
            page.locator(".pad canvas").wait_for()
            opened.append(time.perf_counter() - start)
        box = page.locator(".pad canvas").bounding_box()
        for k in range(STROKES):
            page.get_by_text("Clear").click()
            page.locator(".answer .empty").wait_for()
            page.mouse.move(box["x"] + 60 + 8 * k, box["y"] + 40)
            page.mouse.down()
            page.mouse.move(box["x"] + 120, box["y"] + 220, steps=8)
            page.mouse.up()
            page.locator(".whole[data-ms]").wait_for()
            answered.append(float(page.locator(".whole").get_attribute("data-ms")))
        browser.close()
    server.send_signal(signal.SIGINT)
    server.wait()
    print("ready after " + ", ".join(f"{wait:.2f}" for wait in opened) + " s")
    print(
        f"pen up to answer shown: median {statistics.median(answered):.0f} ms, "
        f"slowest {max(answered):.0f} ms of {STROKES}"
    )


if __name__ == "__main__":
    main()
