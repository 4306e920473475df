"""Time of an update of the page of `uturn explore`: beliefs, draws and all views after a move of
the slider.

    python benchmarks/laboratory.py

Opens the page in headless Chromium (playwright), moves the slider 200 times in every channel, for
64 leaves, and prints the median, without the time of layout and painting.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from uturn.pages.laboratory import write_laboratory

MOVE = """async () => {
  const slider = document.getElementById("noise");
  for (let k = 0; k < 200; k++) {
    slider.value = 5 * k;
    slider.dispatchEvent(new Event("input"));
    await new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)));
  }
  return document.getElementById("speed").textContent;
}"""


def main(chromium: str = "/usr/bin/chromium") -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = write_laboratory(Path(folder) / "lab.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for sizes in ("v=32&m=6&s=2&L=6", "v=32&m=16&s=2&L=6", "v=16&m=8&s=4&L=3"):
            for channel in ("epsilon", "gaussian", "masking", "replacement"):
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(f"{page_file.as_uri()}#{sizes}&channel={channel}&view=changes")
                page.locator("#strings-count", has_text="24").wait_for(timeout=120_000)
                print(f"{sizes}, {channel}: {page.evaluate(MOVE)}", flush=True)
                page.close()
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
