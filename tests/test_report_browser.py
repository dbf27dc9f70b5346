"""The interactive report in headless Chromium, on a phone and on a desk: skipped where Chromium,
its driver or selenium (`pip install -e '.[browser]'`) is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_problem import CONTACTS, make_run, samples, studied

from thermosphere.proteins.structure import ContactMap
from thermosphere.runs import study
from thermosphere.runs.config import Config
from thermosphere.runs.report import Section, Table, write_report
from thermosphere.runs.report_data import report_data, unpacked

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed"),
    pytest.mark.skipif(DRIVER is None, reason="chromedriver is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's sockets
]

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES = {"phone": (390, 844), "desk": (1440, 900)}
OTHER = 'a </script> & "model"'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of two models, the second with a T* to be trusted and an equilibrated temperature."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        one = studied(make_run(directory, patch))
    table = one.table.assign(
        train_loss=one.table["train_loss"] + 1.0,
        equilibrated=("temperature", np.array([False, True])),
        reason=("temperature", np.array(["the loss is still falling", ""])),
    )
    table.attrs = {**one.table.attrs, "peak_temperature": 2e-4, "peak_caveat": ""}
    two = replace(one, name=OTHER, table=table, typical=2e-4)
    pairs = np.argwhere(np.triu(CONTACTS)).astype(np.int64)
    data = report_data([one, two], ContactMap("ARNDCQEGHILK", pairs), Config())
    path = directory / "report.html"
    wide = Table(["a wide column of a table"] * 12, [["1"] * 12])
    write_report(path, title=OTHER, sections=[Section("Table", tables=[wide])], data=data)
    return path, data


def poor_pages(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Runs with little to show: a single draw of one chain, no contact map, no contact, neither
    equilibrated nor any attention."""
    pairs = np.argwhere(np.triu(CONTACTS)).astype(np.int64)
    structure = ContactMap("ARNDCQEGHILK", pairs)
    with pytest.MonkeyPatch.context() as patch:
        make_run(directory, patch)
        whole, bare = studied(directory), studied(directory, contacts=None)
        empty = studied(directory, contacts=np.zeros_like(CONTACTS))
        patch.setattr(study, "open_samples", lambda path: samples().isel(chain=[0], draw=[0]))
        single = studied(directory)
    nowhere = replace(structure, contacts=pairs[:0])
    lost = replace(
        whole,
        table=whole.table.assign(equilibrated=("temperature", np.zeros(2, np.bool_))),
        ensembles=tuple(replace(one, attention=None) for one in whole.ensembles),
        blocks=0,
    )
    for name, found, protein in (
        ("single", single, structure),
        ("bare", bare, None),
        ("empty", empty, nowhere),
        ("lost", lost, structure),
    ):
        path = directory / f"{name}.html"
        data = report_data([found], protein, Config())
        write_report(path, title=name, sections=[], data=data)
        yield path, data


@pytest.fixture(params=list(SIZES))
def page(request: pytest.FixtureRequest, browser: Any, written: tuple[Path, Any]) -> Iterator[Any]:
    """The page in the browser, which must have nothing to complain of when a test is done."""
    show(browser, written[0], *SIZES[request.param])
    yield browser
    assert_sound(browser)


def show(browser: Any, path: Path, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")
    browser.get(f"file://{path}")
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")


def assert_sound(browser: Any) -> None:
    """Nothing in the console, nothing wider than the window, no chart out of its frame."""
    assert browser.get_log("browser") == []
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) == 0
    out = """return [...document.querySelectorAll('.chart svg')].filter((one) =>
        one.clientHeight > one.parentElement.clientHeight + 1).map((one) => one.outerHTML)"""
    assert browser.execute_script(out) == []


def find(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def pick(page: Any, group: str, label: str) -> None:
    (button,) = (one for one in find(page, f"#{group} label") if one.text == label)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def drawn(page: Any, panel: str) -> str:
    return str(find(page, f"#panel-{panel} .chart svg")[0].get_attribute("outerHTML"))


def hover(page: Any, element: Any, dx: float = 0.0, dy: float = 0.0) -> list[str]:
    """Lines of the tooltip with the pointer at an element's middle, (dx, dy) pixels beside it."""
    script = """
        const [element, dx, dy, done] = arguments;
        element.scrollIntoView({block: 'center'});
        // A frame later, when what a scroll sets off is over.
        requestAnimationFrame(() => requestAnimationFrame(() => {
            const box = element.getBoundingClientRect();
            done([box.left + box.width / 2 + dx, box.top + box.height / 2 + dy]);
        }));
    """
    x, y = page.execute_async_script(script, element, dx, dy)
    event = {"type": "mouseMoved", "x": x, "y": y}
    page.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    return [line.text for line in find(page, "#tip div")]


def marks(page: Any, panel: str) -> list[Any]:
    """Marks of the model chosen on the ladder, in order of temperature."""
    return find(page, f"#panel-{panel} g:not(.faint) .mark:not(.dot)")


def test_marks_answer_with_the_numbers_of_the_data(page: Any, written: tuple[Path, Any]) -> None:
    pick(page, "choose-model", OTHER)
    model = written[1]["models"][1]
    for key, symbol in (("train_loss", "⟨U⟩"), ("test_error", "test error")):
        for at, text in enumerate(model["ladder"][key]["text"]):
            lines = hover(page, marks(page, key)[at])
            ratio = ("0.5", "1")[at]
            temperature = model["temperature_texts"][at]
            assert lines[0] == f"{OTHER}, T = {temperature} = {ratio} T*"
            assert lines[1] == f"{symbol} = {text}"
            assert lines[2].startswith("equilibrated: R̂" if at else "not equilibrated: the loss")
    heat = model["ladder"]["specific_heat"]["text"]
    assert hover(page, marks(page, "specific_heat")[1])[1] == f"C = {heat[1]}"
    assert hover(page, marks(page, "specific_heat")[0])[1] == f"(⟨U²⟩ − ⟨U⟩²)/T² = {heat[0]}, not C"
    assert "hollow" in str(marks(page, "train_loss")[0].get_attribute("class"))
    assert "hollow" not in str(marks(page, "train_loss")[1].get_attribute("class"))


def test_choices_change_what_is_drawn(page: Any, written: tuple[Path, Any]) -> None:
    data = written[1]
    panels = ("train_loss", "traces", "precision", "similarity", "similarity-ladder", "norms")
    before = {name: drawn(page, name) for name in panels}
    assert find(page, "#numbers-title")[0].text.startswith("tiny at T")

    pick(page, "choose-model", OTHER)
    assert all(drawn(page, name) != before[name] for name in ("train_loss", "similarity-ladder"))
    assert find(page, "#numbers-title")[0].text == f"{OTHER} at T = 2e-4 = 1 T*"
    assert "Equilibrated." in find(page, "#verdict")[0].text
    table = {row.text.rsplit(" ", 1)[0] for row in find(page, "#numbers tr")}
    assert len(table) > 10
    row = data["models"][1]["rows"][1]
    cells = [cell.text for cell in find(page, "#numbers td")]
    assert cells[: len(row) - 2] == row[2:]

    before = {name: drawn(page, name) for name in panels}
    slider = find(page, "#temperature")[0]
    slider.send_keys("\ue012")  # arrow left
    assert all(drawn(page, name) != before[name] for name in panels)
    assert find(page, "#temperature-text")[0].text == "T = 1e-4 = 0.5 T* (not equilibrated)"
    assert "Not equilibrated: the loss is still falling." in find(page, "#verdict")[0].text
    assert "model=a+" in page.current_url
    assert "T=1e-4" in page.current_url

    norms = drawn(page, "norms")
    pick(page, "choose-weights", "OT")
    assert drawn(page, "norms") != norms
    assert "OT" in find(page, "#numbers-title")[0].text
    seen = "return document.querySelector('.map canvas').toDataURL()"
    first = page.execute_script(seen)
    pick(page, "choose-block", "2" if "Block 1" in find(page, "#map-caption")[0].text else "1")
    assert page.execute_script(seen) != first
    pick(page, "choose-axis", "T/T*")
    assert "temperature T/T*" in drawn(page, "train_loss")


def test_pairs_answer_with_attention_and_contact(page: Any, written: tuple[Path, Any]) -> None:
    shown = written[1]["models"][0]
    attention = shown["ensembles"][shown["typical"]]["attention"]
    block = attention["blocks"][attention["best"]]
    values = unpacked(block["map"])
    host = find(page, ".map")[0]
    size = host.size["width"]
    cell = (size - 38) / 12
    upper = {pair: k for k, pair in enumerate(zip(*np.triu_indices(12, 1), strict=True))}
    for i, j in ((0, 7), (2, 10), (3, 4)):
        dx, dy = 34 + (j + 0.5) * cell - size / 2, (i + 0.5) * cell - size / 2
        lines = hover(page, host, dx, dy)
        assert (
            lines[0] == f"{'ARNDCQEGHILK'[i]}{i + 1} – {'ARNDCQEGHILK'[j]}{j + 1}, |i−j| = {j - i}"
        )
        assert float(lines[1].removeprefix("mean attention ")) == pytest.approx(
            values[upper[i, j]], rel=1e-2, abs=1e-4
        )
        assert lines[2] == ("contact" if CONTACTS[i, j] else "no contact")


def test_keys_do_what_the_pointer_does(page: Any, written: tuple[Path, Any]) -> None:
    chart = find(page, "#panel-train_loss .chart")[0]
    chart.send_keys("\ue014")  # arrow right
    model = written[1]["models"][0]
    assert model["ladder"]["train_loss"]["text"][0] in find(page, "#spoken")[0].get_attribute(
        "textContent"
    )
    chart.send_keys("\ue014")
    chart.send_keys("\ue007")  # enter chooses it
    assert find(page, "#temperature-text")[0].text.startswith(
        f"T = {model['temperature_texts'][1]}"
    )
    find(page, ".map")[0].send_keys("\ue014")
    assert "A1 – R2" in find(page, "#spoken")[0].get_attribute("textContent")


def test_tips_stay_inside_the_window(page: Any) -> None:
    for mark in (marks(page, "train_loss")[0], marks(page, "test_error")[-1]):
        hover(page, mark)
        box = page.execute_script(
            "const b = document.getElementById('tip').getBoundingClientRect();"
            "return [b.left, innerWidth - b.right, b.top]"
        )
        assert min(box) >= 0


def test_link_shows_what_was_chosen(page: Any, written: tuple[Path, Any]) -> None:
    page.get(f"file://{written[0]}#model=tiny&T=2e-4&weights=ES")
    page.refresh()
    assert find(page, "#choose-weights :checked")[0].get_attribute("value") == "ES"
    assert find(page, "#temperature-text")[0].text.startswith("T = 2e-4")


def test_runs_with_little_to_show(browser: Any, tmp_path: Path) -> None:
    for path, data in poor_pages(tmp_path):
        model = data["models"][0]
        for size in SIZES.values():
            show(browser, path, *size)
            assert find(browser, "#explore")[0].is_displayed()
            panels = {
                name: find(browser, f"#panel-{name}")[0].is_displayed()
                for name in ("train_loss", "precision", "attention", "similarity")
            }
            assert panels == {
                "train_loss": True,
                "precision": bool(data["precision"]) and "precision_at_l" in model["ladder"],
                "attention": bool(model["ensembles"][0]["attention"]),
                "similarity": bool(model["layers"]),
            }
            for at, settled in enumerate(model["settled"]):
                marked = "hollow" in str(marks(browser, "train_loss")[at].get_attribute("class"))
                assert marked != settled
            for label in ("ES", "OT", "sampled"):
                pick(browser, "choose-weights", label)
            assert_sound(browser)


def test_chains_that_stand_still_apart_are_marked_and_said(browser: Any, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        one = studied(make_run(tmp_path, patch))
    pairs = np.argwhere(np.triu(CONTACTS)).astype(np.int64)
    table = one.table.assign(
        equilibrated=("temperature", np.zeros(2, np.bool_)),
        stationary=("temperature", np.array([True, False])),
        reason=("temperature", np.array(["chains disagree", "the loss is still falling"])),
    )
    found = replace(one, table=table, typical=float(table["temperature"][0]))
    data = report_data([found], ContactMap("ARNDCQEGHILK", pairs), Config())
    path = tmp_path / "report.html"
    write_report(path, title="apart", sections=[], data=data)
    show(browser, path, *SIZES["desk"])
    classes = [str(mark.get_attribute("class")).split() for mark in marks(browser, "train_loss")]
    assert "half" in classes[0]
    assert "hollow" not in classes[0]
    assert "hollow" in classes[1]
    assert find(browser, "#temperature-text")[0].text.endswith("(chains stand still)")
    verdict = find(browser, "#verdict")[0].text
    assert verdict.startswith("Chains stand still: chains disagree. Every chain stands still")
    assert_sound(browser)


def test_without_scripts_the_rest_is_there(browser: Any, written: tuple[Path, Any]) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get(f"file://{written[0]}")
        assert not find(browser, "#explore")[0].is_displayed()
        assert find(browser, "main table")[0].is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
