"""Report of the performance suite: what plots show, the page, tables in documents."""

from __future__ import annotations

import base64
import html.parser
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from perf.cli import main
from perf.lab import TREE
from perf.page import page
from perf.plots import PLOTS, bars, series
from perf.report import DocumentError, figures, insert, write
from perf.results import Results, dump
from tests.unit.perf_example import FEW, NASTY, SPEEDS, example

PNG = b"\x89PNG\r\n\x1a\n"


class Elements(html.parser.HTMLParser):
    """The elements of a page, and that each is closed."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# -- what plots show ------------------------------------------------------------------------------


def test_series_are_medians_by_axis() -> None:
    found = series(example(), "rate", "mtu", way="out", route="host", version=4, flows=1)
    assert list(found) == list(SPEEDS)
    assert [x for x, _ in found["ours"]] == [1280, 1500, 9000, 65520]
    assert all(y == pytest.approx(13 * 0.6, rel=0.3) for _, y in found["ours"])
    assert series(example(), "rate", "mtu", way="sideways") == {}


def test_bars_are_ratios() -> None:
    found = bars(example(), ("splice/",), "direct")
    assert len(found) > 5
    assert all(name.startswith("splice/") for name in found)
    for each in found.values():
        assert list(each) == [name for name in SPEEDS if name != "direct"]
        assert each["ours"] == pytest.approx(0.6, rel=0.3)


# -- drawing --------------------------------------------------------------------------------------


def test_every_plot_is_drawn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new"
    paths = write(example(1, FEW), str(folder))
    names = [os.path.basename(path) for path in paths]
    assert names == [f"{plot.name}.png" for plot in PLOTS] + ["report.html"]
    assert set(names) == set(os.listdir(folder))
    for path in paths[:-1]:
        image = pathlib.Path(path).read_bytes()
        assert image.startswith(PNG)
        assert len(image) > 4000
    assert (folder / "report.html").read_text().count("data:image/png") == len(PLOTS)


def test_plots_without_anything_to_show_are_left_out() -> None:
    pytest.importorskip("matplotlib")
    assert figures(Results("")) == []
    only_start = example(rounds=1)
    only_start.samples = [s for s in only_start.samples if s.case == "start/plain"]
    assert figures(only_start) == []


# -- the page -------------------------------------------------------------------------------------


def test_page_is_self_contained_and_complete() -> None:
    results = example()
    text = page(results, [("one", "A caption", b"image one"), ("two", "B & C", b"image two")])
    elements = Elements(text).found
    images = [attributes for tag, attributes in elements if tag == "img"]
    assert [image["alt"] for image in images] == ["A caption", "B & C"]
    for image, content in zip(images, (b"image one", b"image two"), strict=True):
        _, _, data = str(image["src"]).partition("base64,")
        assert base64.b64decode(data) == content
    assert not re.search(r'(src|href)="(?!data:)', text)
    for info in results.cases.values():
        assert info.title in text
    assert "unsupported" in text


def test_page_escapes_what_comes_from_outside() -> None:
    text = page(example(), [])
    assert NASTY not in text
    assert "script" not in [tag for tag, _ in Elements(text).found]


# -- documents ------------------------------------------------------------------------------------


def test_tables_in_documents() -> None:
    before = (
        "# Text\n\n<!-- perf: key figures -->\nold\n<!-- perf: end -->\nmore\n"
        "<!-- perf: table -->\n<!-- perf: end -->\nend\n"
    )
    after = insert(example(), before, "README.md")
    assert "old" not in after
    assert after.startswith("# Text\n\n<!-- perf: key figures -->\n")
    assert after.endswith("<!-- perf: end -->\nend\n")
    short, long = after.split("more\n")
    assert short.count("|") < long.count("|")
    assert "Measured 2026-01-01, commit abcdef" in short
    assert insert(example(), after, "README.md") == after


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_our_documents_have_a_place(name: str) -> None:
    with open(os.path.join(TREE, name), encoding="utf-8") as file:
        text = insert(example(), file.read(), name)
    assert "TCP out, host, MTU 1500, IPv4, 1 flow | " in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", r"README\.md: no <!-- perf: table -->"),
        ("<!-- perf: pie -->\n<!-- perf: end -->", r"README\.md: unknown section 'pie'"),
    ],
)
def test_documents_without_a_place(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        insert(example(), text, "README.md")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--rounds", "0"], "'0' is not a number of at least 1"),
        (["run", "--warm-up", "-1"], "'-1' is not a number of at least 0"),
        (["gate", "--base", "HEAD", "--tolerance", "100"], "'100' is not a percentage"),
        (["gate", "--base", "HEAD", "--tolerance", "much"], "'much' is not a percentage"),
        (["gate"], "one of the arguments --base --baseline is required"),
        ([], "required: command"),
    ],
)
def test_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(words)
    assert status.value.code == 2
    assert message in capsys.readouterr().err


def test_commands(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, document = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(dump(example(rounds=1)))
    document.write_text("<!-- perf: table -->\n<!-- perf: end -->\n")
    assert main(["report", str(results), "--insert", str(document)]) == 0
    assert "| TCP on loopback, host → guest |" in document.read_text()
    assert main(["report", str(results)]) == 2
    assert main(["report", str(results), "--insert", str(results)]) == 2
    assert main(["compare", str(results), "--short"]) == 0
    assert main(["compare", str(results), str(results), "--reference", "veth"]) == 0
    out, err = capsys.readouterr()
    assert "×1.00" in out
    assert "perf: nothing to do" in err


def test_reader_that_has_enough() -> None:
    """As in ``python -m perf list | head``: no traceback."""
    with subprocess.Popen(
        [sys.executable, "-m", "perf", "list"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
