"""The report page: what it says, that it needs nothing else, and that it works in a browser at phone and desktop width."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emollm.evaluate import charts, report

BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def entry(accuracy: float, **differences: list[float]) -> dict[str, Any]:
    baselines = {
        name: {
            "accuracy": 0.2,
            "ci95": [0.1, 0.3],
            "diff": values[0],
            "diff_ci95": values[1:],
            "beaten": values[1] > 0,
        }
        for name, values in differences.items()
    }
    return {"n": 10, "demonstration": False, "accuracy": accuracy, "ci95": [0.3, 0.5], "baselines": baselines}


def test_statements_say_where_the_model_wins_where_it_loses_and_where_nothing_is_shown() -> None:
    said = report.statements(
        entry(0.4, majority=[0.16, 0.062, 0.27], text_only=[0.02, -0.01, 0.05], untrained=[-0.1, -0.2, -0.01])
    )
    assert [s["verdict"] for s in said] == ["better", "open", "worse"]
    assert (
        said[0]["text"] == "Better than the most frequent answer (+16.0 points, 95 % interval +6.2 to +27.0)."
    )
    assert said[1]["text"].startswith(
        "Not shown to differ from the same model without the picture (+2.0 points"
    )
    assert said[2]["text"].startswith("Worse than the model before training (−10.0 points")


def test_a_difference_that_touches_zero_is_not_called_better() -> None:
    assert report.statements(entry(0.4, majority=[0.1, 0.0, 0.2]))[0]["verdict"] == "open"


def test_summary_names_both_what_is_beaten_and_what_is_not() -> None:
    results = {
        "sub_tasks": {"emo_c": entry(0.4, majority=[0.16, 0.06, 0.2], text_only=[0.0, -0.1, 0.1])},
        "overall": {"accuracy": 0.4, "ci95": [0.3, 0.5], "sub_tasks": ["emo_c"]},
    }
    assert report.summary(results)[1] == "Emo-C: the model beats majority and is not shown to beat text only."


def test_numbers_are_written_one_way() -> None:
    assert (
        charts.points(0.161) == "+16.1" and charts.points(-0.02) == "−2.0" and charts.points(-0.0001) == "0.0"
    )
    assert charts.percent(0.4312) == "43.1\N{NO-BREAK SPACE}%" and charts.percent(None) == "–"


def test_text_of_samples_cannot_leave_the_script_element() -> None:
    hostile = {"uid": "</script><script>alert(1)</script>", "answer": "<!--"}
    text = report.json_for_script(hostile)
    assert "<" not in text and json.loads(text) == hostile


def test_page_needs_nothing_else_and_stays_small(evaluation: Path) -> None:
    page = (evaluation / "report.html").read_text()
    assert len(page.encode()) < 5_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", page)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", page)
    assert page.count("demonstration, separable by style") >= 3
    assert "no openly licensed sample" in page
    assert json.loads((evaluation / "results.json").read_text())["data_digest"][:16] in page


def test_every_sample_is_in_the_gallery_with_its_picture(evaluation: Path, bench: Path) -> None:
    samples = pq.read_table(evaluation / "samples.parquet").to_pylist()
    gallery, notice = report.make_gallery(samples, str(bench))
    assert sorted(item["uid"] for item in gallery["items"]) == [sample["uid"] for sample in samples]
    assert all(item["media"] is not None for item in gallery["items"])
    frames = {gallery["media"][item["media"]][1] for item in gallery["items"] if item["source"] == "clips"}
    assert frames == {4}
    assert notice.startswith(f"{len(samples)} of {len(samples)} samples")


def test_a_small_budget_leaves_pictures_out_and_says_so(
    evaluation: Path, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PICTURE_BUDGET_BYTES", 3000)
    samples = pq.read_table(evaluation / "samples.parquet").to_pylist()
    gallery, notice = report.make_gallery(samples, str(bench))
    assert 0 < sum(len(uri) for uri, _ in gallery["media"]) <= 3000
    assert "left out" in notice and len(gallery["items"]) == len(samples)


def test_report_is_written_again_without_the_data(evaluation: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluation, tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()
    path = report.write_report(str(tmp_path / "copy"), data=str(tmp_path / "gone"))
    assert "not there any more" in Path(path).read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright import sync_api

    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS.split())
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_report_works_in_a_browser(browser: Any, evaluation: Path, width: int) -> None:
    """Filter, open a sample with the keyboard, page through, close; nothing is requested and nothing overflows."""
    page = browser.new_page(viewport={"width": width, "height": 844}, reduced_motion="reduce")
    requests: list[str] = []
    problems: list[str] = []
    page.on(
        "request",
        lambda request: requests.append(request.url) if not request.url.startswith("data:") else None,
    )
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    address = (evaluation / "report.html").as_uri()
    page.goto(address)
    samples = pq.read_table(evaluation / "samples.parquet").to_pylist()

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('.card')].every(card => card.scrollWidth <= card.clientWidth)"
    )
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("#count").inner_text().startswith(f"{len(samples)} samples")

    page.locator("input[value=emo_c]").focus()
    page.keyboard.press("Space")
    page.locator("input[name=outcome][value=wrong]").focus()
    page.keyboard.press("Space")
    wrong = [sample for sample in samples if sample["sub_task"] == "emo_c" and not sample["correct"]]
    assert page.locator("#count").inner_text().startswith(f"{len(wrong)} samples, 0 right")
    assert page.locator("#grid .right").count() == 0

    page.locator("#grid button").first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    first = dialog.inner_text()
    assert "wrong" in first and "majority" in first and "%" in first
    page.keyboard.press("ArrowRight")
    assert dialog.inner_text() != first
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.closest('#grid') !== null")
    assert requests == [address] and problems == []
    page.close()


def test_dark_and_light_follow_the_reader(browser: Any, evaluation: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((evaluation / "report.html").as_uri())
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert colours[0] != colours[1]
