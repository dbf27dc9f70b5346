"""What the report's page is made of: style sheets, scripts and the frame of its interactive part.

They go into the page as they are; the page loads nothing.
"""

from importlib.resources import files

# In this order: a script uses what those before it define.
SCRIPTS = (
    "data.js",
    "axes.js",
    "labels.js",
    "chart.js",
    "map.js",
    "panels_ladder.js",
    "panels_weights.js",
    "explorer.js",
)


def style_sheet(*, interactive: bool) -> str:
    """The page's style, with that of the interactive part where it has one."""
    return _text("page.css") + (_text("explorer.css") if interactive else "")


def script() -> str:
    """All scripts in one scope of their own."""
    body = "".join(_text(name) for name in SCRIPTS)
    return f"\n(() => {{\n'use strict';\n{body}}})();\n"


def explorer() -> str:
    """The frame of the interactive part, hidden until the script fills it."""
    return _text("explorer.html")


def _text(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
