"""The HTML report: complete, balanced, escaped, self-contained; the tables that go into it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure as MatplotlibFigure

from thermosphere.analysis.figures import png_bytes
from thermosphere.runs.report import Figure, Section, Table, format_table, write_report
from thermosphere.runs.report_tables import (
    equilibration_reasons,
    equilibration_warnings,
    format_temperature,
    thermodynamics_table,
    with_error,
)

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags and text, and asserts that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data

    def count(self, tag: str) -> int:
        return sum(1 for name, _ in self.tags if name == tag)


@pytest.fixture(scope="module")
def figure() -> Figure:
    drawing = MatplotlibFigure(figsize=(1, 1))
    drawing.add_subplot().plot([0, 1])
    return Figure(png_bytes(drawing), "a caption with <b> & ⟨U⟩", alt='says "U"')


@pytest.fixture
def page(tmp_path: Path, figure: Figure) -> str:
    target = tmp_path / "report.html"
    write_report(
        target,
        title="A title & <more>",
        summary=["What was run: <script>alert(1)</script>"],
        warnings=["tf1: two temperatures are not equilibrated"],
        sections=[
            Section(
                "Results of tf1",
                text=["A paragraph."],
                warnings=["T = 1e-5: still falling."],
                tables=[Table(["T", "⟨U⟩"], [["1e-5", "1.0 ± 0.1"], ["2e-5", "<2>"]], "cap", [0])],
                figures=[figure, figure],
            ),
            Section("Configuration", code='name = "<x>"\n[a]\n', folded=True),
        ],
    )
    return target.read_text(encoding="utf-8")


def test_page_is_balanced_and_complete(page: str) -> None:
    assert page.startswith("<!DOCTYPE html>")
    parsed = Page(page)
    for text in (
        "A title & <more>",
        "What was run: <script>alert(1)</script>",
        "tf1: two temperatures are not equilibrated",
        "T = 1e-5: still falling.",
        "A paragraph.",
        "1.0 ± 0.1",
        "<2>",
        "a caption with <b> & ⟨U⟩",
        'name = "<x>"\n[a]\n',
    ):
        assert text in parsed.text
    assert parsed.count("script") == 0
    assert parsed.count("section") == 2
    assert parsed.count("img") == 2
    assert parsed.count("tr") == 3
    assert parsed.count("details") == 1


def test_warnings_come_before_any_section(page: str) -> None:
    assert page.index("two temperatures are not equilibrated") < page.index("<main>")


def test_page_asks_for_nothing_from_outside(page: str) -> None:
    parsed = Page(page)
    for _, attributes in parsed.tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"https?://|url\(|@import|//", re.sub(r"base64,[^\"]*", "", page))


def test_links_lead_to_sections(page: str) -> None:
    parsed = Page(page)
    targets = {attributes["id"] for tag, attributes in parsed.tags if tag == "section"}
    links = {str(attributes["href"])[1:] for tag, attributes in parsed.tags if tag == "a"}
    assert links == targets
    assert len(links) == 2


def test_pictures_travel_inside_with_their_size(page: str, figure: Figure) -> None:
    images = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    source = str(images[0]["src"])
    assert base64.b64decode(source.split(",")[1]) == figure.png
    assert (images[0]["width"], images[0]["height"]) == ("150", "150")
    assert images[0]["alt"] == 'says "U"'


def test_page_fits_a_phone(page: str) -> None:
    parsed = Page(page)
    viewports = [a["content"] for tag, a in parsed.tags if a.get("name") == "viewport"]
    assert viewports == ["width=device-width, initial-scale=1"]
    wrappers = [a for tag, a in parsed.tags if tag == "div" and a.get("class") == "scroll"]
    assert len(wrappers) == parsed.count("table")


HOSTILE = '</script><script>alert("1")</script> & \u2028 \'"`<!--'


@pytest.fixture
def interactive(tmp_path: Path, figure: Figure) -> str:
    target = tmp_path / "report.html"
    explored = Section("tf1", stills=[figure])
    write_report(
        target,
        title=HOSTILE,
        sections=[explored, Section("Sequences", figures=[figure])],
        data={"run": HOSTILE, "models": []},
    )
    return target.read_text(encoding="utf-8")


def test_data_and_script_travel_inside(interactive: str) -> None:
    parsed = Page(interactive)
    assert parsed.count("script") == 2
    data, code = parsed.scripts
    assert json.loads(data) == {"run": HOSTILE, "models": []}
    assert "alert" not in code
    assert 'alert("1")' in parsed.text  # the title, as text
    kinds = [attributes for tag, attributes in parsed.tags if tag == "script"]
    assert kinds == [{"type": "application/json", "id": "study"}, {}]


def test_policy_allows_the_page_itself_alone(interactive: str, page: str) -> None:
    for text, names in ((interactive, ("style", "script")), (page, ("style",))):
        (policy,) = (
            str(attributes["content"])
            for tag, attributes in Page(text).tags
            if attributes.get("http-equiv") == "Content-Security-Policy"
        )
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["img-src"] == "data:"
        assert [name for name in ("style", "script") if f"{name}-src" in rules] == list(names)
        for name in names:
            (inline,) = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    for _, attributes in Page(interactive).tags:  # what the policy would refuse
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_interactive_page_asks_for_nothing_from_outside(interactive: str) -> None:
    for _, attributes in Page(interactive).tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
    text = re.sub(r"base64,[^\"]*", "", interactive)
    calls = r"https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon"
    assert not re.search(calls, text)


def test_everything_is_there_without_a_script(interactive: str) -> None:
    parsed = Page(interactive)
    assert parsed.count("img") == 2
    folded = [attributes for tag, attributes in parsed.tags if tag == "details"]
    assert folded == [{"class": "still", "open": None}]  # the script closes it
    (frame,) = [a for tag, a in parsed.tags if a.get("id") == "explore"]
    assert "hidden" in frame


def test_scripts_find_what_they_look_for(interactive: str) -> None:
    parsed = Page(interactive)
    known = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    code = parsed.scripts[1]
    asked = set(re.findall(r"getElementById\('([^']+)'\)", code))
    asked |= set(re.findall(r"querySelector(?:All)?\('#([\w-]+)", code))
    asked |= {f"panel-{name}" for name in re.findall(r"(?:panel|chartOf)\('([\w-]+)'\)", code)}
    assert len(asked) > 20
    assert asked <= known, asked - known


def test_write_is_atomic(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(ValueError, match="row 0 of table 'bad' must have 2 cells, got 1"):
        write_report(
            target,
            title="t",
            sections=[Section("s", tables=[Table(["a", "b"], [["1"]], "bad")])],
        )
    with pytest.raises(ValueError, match="figure 'c' must be a PNG"):
        write_report(target, title="t", sections=[Section("s", figures=[Figure(b"GIF", "c")])])
    assert target.read_text() == "old"
    write_report(target, title="t", sections=[])
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_format_table_aligns_columns_by_what_is_seen() -> None:
    text = format_table(Table(["T", "P̃@L"], [["1e-4", "0.5"], ["2e-4", "0.25"]], doubtful=[1]))
    assert text.split("\n") == [
        "   T   P̃@L",  # the tilde takes no column
        "────  ────",
        "1e-4   0.5",
        "2e-4  0.25 *",
    ]


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (1.0853, 0.0041, "1.085 ± 0.004"),
        (1.0853, 0.0014, "1.0853 ± 0.0014"),
        (1.0853, 0.00096, "1.0853 ± 0.0010"),
        (4160.5, 845.2, "4200 ± 800"),
        (4160.5, 145.2, "4160 ± 150"),
        (72288620.0, 19080355.0, "7.2e7 ± 2e7"),
        (0.8, 1e-16, "0.8 ± 0"),
        (0.25, float("nan"), "0.25"),
        (float("nan"), 0.1, "–"),
    ],
)
def test_with_error(mean: float, error: float, text: str) -> None:
    assert with_error(mean, error) == text


@pytest.mark.parametrize(
    ("temperature", "text"),
    [(1e-5, "1e-5"), (2.06e-4, "2.06e-4"), (1.1e-4, "1.1e-4"), (0.25, "0.25"), (1.0, "1")],
)
def test_format_temperature(temperature: float, text: str) -> None:
    assert format_temperature(temperature) == text


def ladder() -> xr.Dataset:
    names = ("train_loss", "specific_heat", "test_error")
    table = xr.Dataset(coords={"temperature": [1e-5, 1e-4]})
    for name in names:
        table[name] = ("temperature", [0.5, 0.7])
        table[name + "_error"] = ("temperature", [0.02, 0.003])
    table["ess"] = ("temperature", [np.nan, 55.4])
    table["r_hat"] = ("temperature", [np.nan, 1.014])
    table["equilibrated"] = ("temperature", [False, True])
    table["reason"] = ("temperature", np.array(["only 3 draws a chain", ""]))
    table["note"] = ("temperature", np.array(["", "the weights still move"]))
    table.attrs["peak_caveat"] = "the maximum is at the upper end"
    return table


def test_thermodynamics_table_shows_what_there_is() -> None:
    shown = thermodynamics_table(ladder(), caption="tf1")
    assert list(shown.columns) == ["T", "equilibrated", "⟨U⟩ (nats)", "C", "test error", "ESS", "R̂"]
    assert list(shown.rows[0]) == [
        "1e-5", "no", "0.50 ± 0.02", "–", "0.50 ± 0.02", "–", "–"
    ]  # fmt: skip
    assert shown.rows[1][3] == "0.700 ± 0.003"  # C only where equilibrated
    assert list(shown.rows[1])[-2:] == ["55", "1.01"]
    assert list(shown.doubtful) == [0]


def test_short_table_has_no_errors_and_gains_a_column_with_precision() -> None:
    table = ladder()
    table["precision_at_l_tolerant"] = ("temperature", [0.1, 0.2])
    shown = thermodynamics_table(table, short=True)
    assert "P̃@L" in shown.columns
    assert not any("±" in cell for row in shown.rows for cell in row)
    assert [row[3] for row in shown.rows] == ["–", "0.7"]


def test_warnings_name_the_temperatures_in_plain_words() -> None:
    first, second, third = equilibration_warnings("tf1", ladder())
    assert "1 of 2 temperatures are not equilibrated (T = 1e-5)" in first
    assert "still move away from their start at T = 1e-4" in second
    assert "T* is doubtful: the maximum is at the upper end." in third
    assert equilibration_reasons(ladder()) == ["T = 1e-5: only 3 draws a chain."]


def test_chains_that_stand_still_with_few_draws_are_not_said_to_stay_apart() -> None:
    table = ladder()
    still = np.array([False, True, *[False] * (table.sizes["temperature"] - 2)])
    table["equilibrated"] = ("temperature", ~still)
    table["stationary"] = ("temperature", still)
    table["note"] = ("temperature", np.full(still.size, ""))
    for r_hat, words in ((1.05, "has few independent draws"), (1.5, "starts stay apart")):
        table["r_hat"] = ("temperature", np.full(still.size, r_hat))
        assert words in equilibration_warnings("tf1", table)[0]


def test_no_warning_when_all_is_well() -> None:
    table = ladder().isel(temperature=[1])
    table["note"] = ("temperature", np.array([""]))
    table.attrs["peak_caveat"] = ""
    assert equilibration_warnings("tf1", table) == []
    assert equilibration_reasons(table) == []
