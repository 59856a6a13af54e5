"""The report's page in a real browser, and its table in LaTeX."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from lsseg.ablation.page import Report, write_latex, write_page
from lsseg.ablation.results import Result
from lsseg.callbacks.results import image_scores

TINY = Path(__file__).parents[1] / "cli" / "tiny.yaml"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def keep_gallery(run, frames):
    """A gallery of one worst and one best image; every frame has a grey of its own."""
    (run / "gallery").mkdir(parents=True)
    entries = []
    for which, score in (("worst", 0.125), ("best", 0.75)):
        files = [{"file": f"{which}1-{k}.jpg", "label": f"step {k}"} for k in range(frames)]
        for k, each in enumerate(files):
            Image.new("RGB", (8, 6), (40 * k,) * 3).save(run / "gallery" / each["file"])
        entries.append({"which": which, "name": f"{run.name}-{which}", "score": score, "frames": files})
    (run / "gallery" / "gallery.json").write_text(json.dumps(entries))


@pytest.fixture
def page(tmp_path):
    """A suite of two methods, one of which has steps; names that would break careless HTML."""
    results = []
    for name, frames in (("plain", 1), ("steps", 3)):
        keep_gallery(tmp_path / name, frames)
        for seed in (0, 1):
            results.append(Result(name, seed, tmp_path / name, {}, np.array(["a"]), {}))
    scores = ["9.50 ± 0.10", "–", "-10.00"]
    table = pd.DataFrame({"method": ["<b>&plain", "</script>", "c"], "mIoU": scores, "Δ mIoU [95 %]": ["–", "1", "2"]})
    by_class = pd.DataFrame({"method": ["plain"], "road": ["97.1"]})
    Image.new("RGB", (30, 20)).save(tmp_path / "scores.png")
    labels = {"plain": "<b>&plain", "steps": "<!--<script></script><i>"}
    tables = {"": table, "IoU by class": by_class}
    path = tmp_path / "report.html"
    report = Report("a & b", "3 images", "how", tables, [tmp_path / "scores.png"])
    write_page(path, report, results, labels)
    return path


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(page, browser):
    tab = browser.new_page()
    tab.problems, tab.requests = [], []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    assert tab.problems == []
    tab.close()


def test_the_page_needs_no_other_file(opened, page):
    assert {url.partition(":")[0] for url in opened.requests} <= {"file", "data"}
    assert [url for url in opened.requests if url.startswith("file")] == [page.as_uri()]
    assert opened.locator("h1").inner_text() == "a & b"
    assert opened.locator("#scores td").first.inner_text() == "<b>&plain"
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert opened.evaluate(broken) == 0


def test_a_click_on_a_head_sorts_by_number(opened):
    column = opened.locator("#scores tbody td:nth-child(2)")
    head = opened.locator("#scores th").nth(1)
    head.click()
    assert column.all_inner_texts() == ["9.50 ± 0.10", "-10.00", "–"]
    assert head.get_attribute("aria-sort") == "descending"
    head.click()
    assert column.all_inner_texts() == ["-10.00", "9.50 ± 0.10", "–"]
    for order in (["c", "<b>&plain", "</script>"], ["</script>", "<b>&plain", "c"]):
        opened.locator("#scores th").first.click()
        assert opened.locator("#scores tbody td:first-child").all_inner_texts() == order


def test_the_gallery_changes_with_method_and_slider(opened):
    assert opened.locator("#gallery").is_visible()
    assert opened.locator("#method option").all_inner_texts() == ["<b>&plain", "<!--<script></script><i>"]
    assert opened.locator("#worst figcaption").all_inner_texts() == ["plain-worst, 12.5 %: step 0"]
    assert opened.locator("#gallery input").count() == 0  # nothing to slide
    opened.select_option("#method", index=1)
    worst = opened.locator("#worst figure")
    assert "steps-worst, 12.5 %: step 2" in worst.inner_text()
    last = worst.locator("img").get_attribute("src")
    worst.locator("input").fill("0")
    assert "step 0" in worst.inner_text()
    assert worst.locator("img").get_attribute("src") != last
    assert "step 2" in opened.locator("#best figure").inner_text()  # a slider moves its own picture only


def test_without_pictures_there_is_no_gallery(tmp_path, browser):
    result = Result("plain", 0, tmp_path, {}, np.array(["a"]), {})
    report = Report("t", "c", "n", {"": pd.DataFrame({"method": ["x"]})}, [])
    write_page(tmp_path / "r.html", report, [result], {"plain": "x"})
    tab = browser.new_page()
    tab.goto((tmp_path / "r.html").as_uri())
    assert not tab.locator("#gallery").is_visible()
    tab.close()


@pytest.fixture
def real_page(lsseg, train_here, tmp_path):
    """The page of a suite whose runs have been trained: two methods that refine, a baseline with a paper's number."""
    shutil.copy(TINY, tmp_path / "tiny.yaml")
    plain = yaml.safe_load(TINY.read_text())["model"]["init_args"]["network"]
    dmls = {"class_path": "DMLS", "init_args": {"steps": 2, "network": plain}}
    head = {"class_path": "ChanVeseNet", "init_args": {"features": 4, "steps": 3, "network": plain}}
    variants = [
        {"name": "ce", "label": "Cross-entropy", "paper": {"miou": 76.5}},
        {"name": "dmls", "label": "DMLS", "set": {"model": "DMLSTask", "model.network": dmls}},
        {"name": "cv", "label": "Chan–Vese", "set": {"model": "ChanVeseTask", "model.network": head}},
    ]
    suite = tmp_path / "suite.yaml"
    content = {"name": "real", "base": ["tiny.yaml"], "set": {"panels.images": 1}, "variants": variants}
    suite.write_text(yaml.safe_dump(content))
    train_here(suite)
    assert lsseg("ablate", suite)[0] == 0
    return tmp_path / "runs" / "real" / "report.html"


@pytest.mark.slow
def test_the_page_of_trained_methods(real_page, browser):
    tab = browser.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(real_page.as_uri())
    rows = tab.locator("#scores tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["Cross-entropy", "DMLS", "Chan–Vese"]
    assert "76.5" in rows[0]
    assert re.search(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", rows[1])
    pictures = tab.evaluate("[...document.images].map(image => [image.alt, image.naturalWidth])")
    assert all(width > 0 for _, width in pictures)
    assert {"Scores", "Learning curves", "Scores by class", "Example predictions"} <= {alt for alt, _ in pictures}
    for method, steps in (("DMLS", 2), ("Chan–Vese", 4)):
        tab.select_option("#method", label=method)
        worst = tab.locator("#worst figure").first
        seen = set()
        for step in range(steps):
            worst.locator("input").fill(str(step))
            seen.add((worst.locator("figcaption").inner_text(), worst.locator("img").get_attribute("src")))
        assert len(seen) == steps
        assert int(worst.locator("input").get_attribute("max")) == steps - 1
    assert problems == []
    tab.close()


def test_latex_is_ascii_with_everything_escaped(tmp_path):
    table = pd.DataFrame(
        {"method": ["a_b & {c} #1 $ L^AD~", "φᴺ ± λ ≥ σ"], "Δ mIoU [95 %]": ["-2.72 [-4.94, +0.72]", "–"]}
    )
    write_latex(tmp_path / "t.tex", table, "suite: 3 images")
    text = (tmp_path / "t.tex").read_text()
    assert text.isascii()
    lines = text.splitlines()
    assert lines[0].startswith("%")
    assert lines[1] == r"\begin{tabular}{lr}"
    assert lines[3] == r"method & \ensuremath{\Delta} mIoU [95 \%] \\"
    minus = r"\ensuremath{-}"
    name = r"a\_b \& \{c\} \#1 \$ L{\textasciicircum}AD{\textasciitilde}"
    assert lines[5] == rf"{name} & {minus}2.72 [{minus}4.94, +0.72] \\"
    phi, *signs = (rf"\ensuremath{{{sign}}}" for sign in (r"\varphi", "^N", r"\pm", r"\lambda", r"\geq", r"\sigma"))
    assert lines[6] == rf"{phi}{' '.join(signs)} & {{\textendash}} \\"
    assert not re.search(r"(?<!\\)[&%#_]", lines[5].replace(" & ", " "))


def test_score_of_an_image():
    # tp, predicted, true of two classes: image 0 has IoU 1/2 and 1, image 1 has one class at 0, image 2 is void.
    overlap = np.array([[[1, 1, 2], [4, 4, 4]], [[0, 3, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]], float)
    found = image_scores("semantic", {"overlap": overlap})
    assert found[:2] == pytest.approx([0.75, 0.0])
    assert np.isnan(found[2])
    # Image 4: two objects, one found at five of ten thresholds, one invented with too low a score; image 7: nothing.
    row = np.zeros((2, 3 + 10))
    row[:, 0], row[:, 2], row[0, 3:8] = 4, (0.9, 0.2), 1
    counts = {"detections": row, "objects": np.array([[2], [0]]), "index": np.array([4, 7])}
    scores = image_scores("instances", counts)
    assert scores[0] == pytest.approx(2 * 0.5 / (1 + 2))
    assert np.isnan(scores[1])
