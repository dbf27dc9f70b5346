"""docs/images/report.png: the interactive part of the demo's report, down to its attention map.

Needs Chromium, its driver and selenium (`pip install -e '.[browser]'`); `make picture` runs it.
"""

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver

WIDTH = 1280  # CSS pixels: four panels side by side

root = Path(__file__).parents[1]
report = root / "runs" / "demo" / "report.html"
if not report.is_file():
    sys.exit(f"{report} is missing: make demo")
chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
if chromium is None or driver is None:
    sys.exit("the picture is Chromium's: chromium and chromedriver must be installed")
options = webdriver.ChromeOptions()
options.binary_location = chromium
for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
    options.add_argument(flag)
service = webdriver.ChromeService(driver)
with webdriver.Chrome(options=options, service=service) as browser:
    size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"file://{report}")
    browser.execute_async_script("setTimeout(arguments[0], 500)")  # until it is drawn
    top, bottom = browser.execute_script(
        "const box = (id) => document.getElementById(id).getBoundingClientRect();"
        "return [box('explore-title').top, box('panel-attention').bottom].map((y) => y + scrollY);"
    )
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom + 16 - top, "scale": 1}
    shot = {"clip": clip, "captureBeyondViewport": True}
    png = browser.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]
picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
# Octree: median cut gives rare colours, such as a model's, to their nearest crowd.
small = picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
small.save(root / "docs" / "images" / "report.png", optimize=True)
