"""Take the picture of a report that opens the README and the site: its answer, and what quality costs.

Run it when the page looks different, on the study of ``make demo``: ``python docs/report_picture.py
runs/demo-recall``. It needs the extra ``test``, and a Chromium, named in ``GATEWORK_CHROMIUM`` unless it is
found. What stands between these parts on the page is left out.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "report-demo.webp"
WIDTH, MARGIN, SCALE = 1200, 12, 1.5
LEFT_OUT = ".facts, #figure-quality, .top, .legend-tools"


def take(page: Path) -> Image.Image:
    """Return the parts of a page, in its light colours."""
    chromium = (
        os.environ.get("GATEWORK_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(
            offline=True,
            color_scheme="light",
            reduced_motion="reduce",
            viewport={"width": WIDTH, "height": 900},
            device_scale_factor=SCALE,
        )
        shown = context.new_page()
        shown.goto(page.resolve().as_uri())
        shown.add_style_tag(
            content=f"{LEFT_OUT} {{ display: none }} .legend {{ position: static !important; border: 0 }}"
        )
        panel = shown.locator("#cost-panels > *").first
        panel.locator(".main-svg").first.wait_for()
        shown.wait_for_timeout(500)  # figures find their size
        shown.evaluate("scrollTo(0, 0)")
        box = panel.bounding_box()
        assert box is not None
        area = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + MARGIN}
        picture = shown.screenshot(full_page=True, clip=area)
        browser.close()
    return Image.open(io.BytesIO(picture)).convert("RGB")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path, help="folder of the study, with report.html")
    page = parser.parse_args().study / "report.html"
    take(page).save(PICTURE, lossless=True, method=6)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
