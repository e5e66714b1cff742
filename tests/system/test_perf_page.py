"""The report of the performance suite in a real browser: every figure is seen.

Chromium (Debian: chromium) renders the page without a display; a script that is added to a copy of
the page then writes down what has been laid out.
"""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from perf.plots import PLOTS
from perf.report import write
from tests.unit.perf_example import FEW, example

pytest.importorskip("matplotlib")

LOOK = """<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("figure")].map(f => {
    const image = f.querySelector("img"), box = image.getBoundingClientRect();
    return [f.id, image.complete, image.naturalWidth, box.width, box.height];
  });
  const rows = document.querySelectorAll("tbody tr").length;
  const text = document.createElement("pre");
  text.id = "seen";
  text.textContent = JSON.stringify({figures: seen, rows: rows,
                                     wide: document.documentElement.scrollWidth});
  document.body.append(text);
});
</script>
"""


def test_every_figure_is_rendered(tmp_path: pathlib.Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    results = example(1, FEW)
    write(results, str(tmp_path))
    report = tmp_path / "report.html"
    report.write_text(report.read_text().replace("</body>", LOOK + "</body>"))
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/profile",
            "--window-size=1200,900",
            "--virtual-time-budget=10000",
            "--dump-dom",
            report.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=80,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    seen = json.loads(html.unescape(found[1]))
    assert [figure[0] for figure in seen["figures"]] == [plot.name for plot in PLOTS]
    for name, complete, natural, width, height in seen["figures"]:
        assert complete, name
        assert natural > 300, name
        assert width > 300, name
        assert height > 200, name
    assert seen["rows"] > len(results.cases)
    assert seen["wide"] <= 1200  # wide tables scroll by themselves
