"""The report page: what it says, that it needs nothing else, and that it works in a browser at phone and desktop width.

The runs are made up (`synthetic`), so no model is needed; the data with pictures is a small EmoBench.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from emollm.evaluate import charts, embedded, report, run_folder
from emollm.evaluate.protocol import EvaluationError, Row, read_rows
from tests.emollm.evaluate import synthetic

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


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def embedded_in(page: str) -> dict[str, Any]:
    """The data inside of a page: `index` and `chunks` unpacked."""
    raw = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert raw is not None
    data: dict[str, Any] = json.loads(raw[1])
    return {**data, "index": unpacked(data["index"]), "chunks": [unpacked(chunk) for chunk in data["chunks"]]}


HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
RIGHT_TO_LEFT = "\u202eتجربة\u202c"
LONG = "A" * 3000


@pytest.fixture(scope="module")
def rows(bench: Path) -> list[Row]:
    """The test rows of the small EmoBench, with pictures, and three whose texts are hostile."""
    asked = [
        row
        for row in read_rows(str(bench), json.loads((bench / "manifest.json").read_text()))
        if row.split == "test"
    ]
    odd = synthetic.rows(4, tasks=("emo_c",))[:3]
    texts = (HOSTILE, RIGHT_TO_LEFT, LONG)
    return asked + [
        Row(**{**vars(row), "uid": f"{text} {n}", "prompt": f"{text}\n{row.prompt}", "source": "odd"})
        for n, (row, text) in enumerate(zip(odd, texts, strict=True))
    ]


@pytest.fixture(scope="module")
def runs(bench: Path, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        synthetic.write_run(folder / "weak", rows, 0.4, seed=1, name="weak & plain", data=str(bench)),
        synthetic.write_run(folder / "strong", rows, 0.8, seed=2, name="strong", data=str(bench)),
    ]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Path:
    return Path(report.write_report(str(runs[0])))


@pytest.fixture(scope="module")
def side_by_side(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "comparison.html"
    return Path(report.write_side_by_side([str(run) for run in runs], str(path)))


def test_page_needs_nothing_else_and_says_what_counts(page: Path, runs: list[Path]) -> None:
    text = page.read_text()
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", text)
    assert "demonstration, separable by style" in text and "no openly licensed sample" in text
    assert json.loads((runs[0] / "results.json").read_text())["data_digest"][:16] in text
    assert "weak &amp; plain" in text and "weak & plain" not in text
    assert report.write_report(str(runs[0])) and page.read_text() == text  # the same inputs, the same page


def test_every_sample_is_on_the_page_with_its_picture(page: Path, rows: list[Row]) -> None:
    data = embedded_in(page.read_text())
    index = data["index"]
    assert index["uid"] == sorted(row.uid for row in rows)
    assert sum(len(chunk) for chunk in data["chunks"]) == len(rows)
    with_picture = {index["uid"][int(place)] for place in index["pictures"]}
    assert with_picture == {row.uid for row in rows if row.source != "odd"}
    frames = {
        data["media"][number][1]
        for place, number in index["pictures"].items()
        if index["uid"][int(place)].startswith("clips")
    }
    assert frames == {4}


def test_index_and_chunks_hold_what_samples_parquet_says(page: Path, runs: list[Path]) -> None:
    data = embedded_in(page.read_text())
    index, of = data["index"], data["index"]["runs"][0]
    details = [sample for chunk in data["chunks"] for sample in chunk]
    for place, row in enumerate(embedded.rows_by_uid(run_folder.read_run(str(runs[0])))):
        shown = [
            index["texts"][column[place]]
            for column in (index["task"], index["source"], of["answer"], of["status"])
        ]
        assert shown == [row["sub_task"], row["source"], row["answer"], row["status"]]
        assert of["right"][place] == row["correct"] and details[place]["prompt"] == row["prompt"]
        assert len(details[place]["runs"][0]["scores"]) == len(row["options"])


def test_most_confident_errors_and_hardest_samples_by_hand() -> None:
    def row(
        uid: str, correct: bool, probability: float | None, majority: bool, of_gold: float
    ) -> dict[str, Any]:
        return {
            "uid": uid, "sub_task": "humor", "correct": correct, "probability": probability, "options": ["Yes", "No"],
            "scores": list(map(float, [0, 0])) if of_gold == 0.5 else [-0.1, -3.0], "gold_answers": ["No"],
            "majority_correct": majority,
        }  # fmt: skip

    rows = [
        row("a", True, 0.99, True, 0.5), row("b", False, 0.7, False, 0.5), row("c", False, 0.9, True, 0.05),
        row("d", False, None, False, 0.05), row("e", False, 0.7, False, 0.05),
    ]  # fmt: skip
    found = embedded.highlights(rows, shown=3)["humor"]
    assert found.confident == [
        2,
        1,
        4,
    ]  # .9, then .7 twice by name; what has no probability is not among them
    assert found.hardest == [
        3,
        4,
        1,
    ]  # c was right for the majority; the gold of d and e was held least probable


def test_with_many_samples_only_remarkable_ones_have_pictures(
    runs: list[Path], bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ALL_PICTURES_UP_TO", 10)
    run = run_folder.read_run(str(runs[0]))
    data = embedded_in(report.render([run]))
    shown = {
        place for lists in data["highlights"][0].values() for places in lists.values() for place in places
    }
    odd = {
        place
        for place, uid in enumerate(data["index"]["uid"])
        if not uid.startswith(("faces", "clips", "gest", "jokes"))
    }
    assert set(map(int, data["index"]["pictures"])) == shown - odd
    assert f"of {run.results['n']} samples are on this page" in report.render([run])


def test_a_small_budget_leaves_pictures_out_and_says_so(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PICTURE_BUDGET_BYTES", 3000)
    text = report.render([run_folder.read_run(str(runs[0]))])
    assert 0 < sum(len(uri) for uri, _ in embedded_in(text)["media"]) <= 3000
    assert re.search(r"Pictures of \d+ of \d+ samples are on this page", text)


def test_report_is_written_again_without_the_data(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "copy")
    path = report.write_report(str(tmp_path / "copy"), data=str(tmp_path / "gone"))
    assert "not there any more" in Path(path).read_text()


def test_runs_that_cannot_be_compared_are_refused(runs: list[Path], rows: list[Row], tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "fewer", rows[:-5], 0.5)
    with pytest.raises(EvaluationError, match="answered different samples"):
        report.write_side_by_side([str(runs[0]), str(other)], str(tmp_path / "page.html"))
    with pytest.raises(EvaluationError, match="a page holds 6 side by side"):
        report.write_side_by_side([str(runs[0])] * 7, str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_runs_of_one_name_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    path = report.write_side_by_side([str(runs[0])] * 2, str(tmp_path / "page.html"))
    assert "weak &amp; plain (B)" in Path(path).read_text()


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


class Opened:
    """A page in the browser, and what it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, width: int, **options: Any) -> None:
        self.page = browser.new_page(
            viewport={"width": width, "height": 844}, reduced_motion="reduce", **options
        )
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on(
            "request", lambda it: None if it.url.startswith("data:") else self.requests.append(it.url)
        )
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#rows tr")
        self.address = path.as_uri()

    def count(self) -> str:
        return str(self.page.locator("#count").inner_text())

    def close(self) -> None:
        assert self.requests == [self.address] and self.problems == []
        self.page.close()


def nothing_overflows(page: Any) -> bool:
    return bool(
        page.evaluate(
            "document.documentElement.scrollWidth <= innerWidth && "
            "[...document.querySelectorAll('.card')].every(card => card.scrollWidth <= card.clientWidth + 1)"
        )
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_report_works_in_a_browser(browser: Any, page: Path, runs: list[Path], width: int) -> None:
    """Filter, open a sample with the keyboard, step on, close; nothing is requested and nothing overflows."""
    opened = Opened(browser, page, width)
    view = opened.page
    samples = pq.read_table(runs[0] / "samples.parquet").to_pylist()
    assert nothing_overflows(view)
    assert view.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert opened.count().startswith(f"{len(samples)} of {len(samples)} samples")
    assert view.title() == "EmoBench: weak & plain"  # and not what a hostile sample wants

    view.locator("#by-task").focus()
    view.select_option("#by-task", "emo_c")
    view.select_option("#by-outcome", "wrong")
    view.select_option("#by-source", "faces")
    wrong = [s for s in samples if s["sub_task"] == "emo_c" and not s["correct"] and s["source"] == "faces"]
    assert opened.count() == f"{len(wrong)} of {len(samples)} samples; 0 right, {len(wrong)} wrong"
    assert view.locator("#rows tr").count() == len(wrong) and view.locator("#rows .right").count() == 0
    view.select_option("#by-gold", wrong[0]["gold"])
    assert opened.count().startswith(f"{sum(s['gold'] == wrong[0]['gold'] for s in wrong)} of")
    view.locator("button[type=reset]").click()
    expect(view.locator("#count")).to_contain_text(f"{len(samples)} of")
    view.select_option("#by-status", "empty")
    assert opened.count().startswith(f"{sum(s['status'] == 'empty' for s in samples)} of")
    view.locator("button[type=reset]").click()
    expect(view.locator("#rows tr")).to_have_count(min(50, len(samples)))

    view.locator("#rows button").first.focus()
    view.keyboard.press("Enter")
    view.wait_for_selector("dialog pre")
    dialog = view.locator("dialog")
    first = dialog.inner_text()
    assert "gold" in first and "majority" in first and "%" in first
    view.keyboard.press("ArrowRight")
    view.wait_for_selector("dialog pre")
    assert dialog.inner_text() != first
    view.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert view.evaluate("document.activeElement === document.querySelectorAll('#rows button')[1]")
    opened.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_two_runs_are_compared_in_a_browser(
    browser: Any, side_by_side: Path, runs: list[Path], width: int
) -> None:
    opened = Opened(browser, side_by_side, width)
    view = opened.page
    assert nothing_overflows(view)
    weak, strong = (
        sorted(pq.read_table(run / "samples.parquet").to_pylist(), key=lambda row: row["uid"]) for run in runs
    )
    assert view.locator("section[data-run='0']:visible").count() == 2
    view.locator("input[name=run][value='1']").focus()
    view.keyboard.press("Space")
    assert view.locator("section[data-run='0']:visible").count() == 0
    assert opened.count().endswith(
        f"B: {sum(r['correct'] for r in strong)} right, {sum(not r['correct'] for r in strong)} wrong"
    )
    view.select_option("#by-agreement", "only1")
    gained = sum(b["correct"] and not a["correct"] for a, b in zip(weak, strong, strict=True))
    assert opened.count().startswith(f"{gained} of")
    view.locator("#rows button").first.focus()
    view.keyboard.press("Enter")
    view.wait_for_selector("dialog h4 >> nth=1")
    said = view.locator("dialog").inner_text()
    assert "A ✗" in said and "B ✓" in said and "A weak & plain" in said and "B strong" in said
    view.keyboard.press("Escape")
    assert "B − A" in view.locator(".side").inner_text()
    opened.close()


def test_hostile_texts_stay_texts_in_the_browser(browser: Any, side_by_side: Path) -> None:
    opened = Opened(browser, side_by_side, 390)
    view = opened.page
    for text in (HOSTILE, RIGHT_TO_LEFT, LONG):
        view.fill("#by-words", text.lower())
        assert opened.count().startswith("1 of")
        assert view.locator("#rows b").first.inner_text().startswith(text)
        view.locator("#rows button").first.click()
        view.wait_for_selector("dialog pre")
        assert view.locator("dialog pre").first.text_content().startswith(text)
        assert nothing_overflows(view)
        assert view.evaluate(
            "document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth"
        )
        view.keyboard.press("Escape")
    assert view.evaluate("getComputedStyle(document.querySelector('#rows b')).unicodeBidi") == "isolate"
    assert view.title() == "EmoBench: weak & plain and strong" and view.locator("img[src=x]").count() == 0
    opened.close()


def test_every_control_has_a_name_and_text_enough_contrast(browser: Any, side_by_side: Path) -> None:
    """Names of controls as assistive technology computes them; WCAG AA contrast of the palette in both schemes."""
    for scheme in ("light", "dark"):
        opened = Opened(browser, side_by_side, 1280, color_scheme=scheme)
        for kind in ("button", "combobox", "searchbox", "radio", "region", "table"):
            controls = opened.page.get_by_role(kind)
            named = opened.page.get_by_role(kind, name=re.compile(r"\S"))
            assert controls.count() == named.count() > 0, kind
        colours = opened.page.evaluate(
            "Object.fromEntries(['paper','card','ink','soft','accent','good','bad','open'].map(name => {"
            "const s = document.createElement('i'); s.style.color = `var(--${name})`; document.body.append(s);"
            "const c = getComputedStyle(s).color.match(/[0-9.]+/g).slice(0, 3).map(Number); s.remove(); return [name, c]; }))"
        )
        for background in ("paper", "card"):
            for text in ("ink", "soft", "accent", "good", "bad", "open"):
                assert contrast(colours[text], colours[background]) >= 4.5, (scheme, text, background)
        opened.close()


def contrast(first: list[float], second: list[float]) -> float:
    """The contrast ratio of two sRGB colours (WCAG 2.2, relative luminance)."""

    def luminance(colour: list[float]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_dark_and_light_follow_the_reader(browser: Any, page: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        opened = Opened(browser, page, 1280, color_scheme=scheme)
        colours.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        opened.close()
    assert colours[0] != colours[1]


@pytest.mark.slow
def test_fifty_thousand_samples_load_and_filter_quickly(browser: Any, tmp_path: Path) -> None:
    folder = synthetic.write_run(tmp_path / "run", synthetic.rows(50_000), 0.6)
    path = Path(report.write_report(str(folder)))
    size = path.stat().st_size
    opened = Opened(browser, path, 390)
    times = opened.page.evaluate(
        """async () => {
          const timed = async (work) => { const start = performance.now(); work(); await new Promise(requestAnimationFrame); return performance.now() - start; };
          const choose = (id, value) => { const field = document.getElementById(id); field.value = value; field.dispatchEvent(new Event("input", {bubbles: true})); };
          return { load: performance.getEntriesByType("navigation")[0].loadEventEnd,
            filter: await timed(() => choose("by-outcome", "wrong")), sort: await timed(() => choose("by-order", "sure")),
            search: await timed(() => choose("by-words", "-0001")) };
        }"""
    )
    print(f"50,000 samples: {size / 1e6:.2f} MB, milliseconds {times}")
    rows = pq.read_table(folder / "samples.parquet", columns=["uid", "correct"]).to_pylist()
    left = sum("-0001" in row["uid"] and not row["correct"] for row in rows)
    assert opened.count().startswith(f"{left} of 50,000") and left > 10 and size < 6_000_000
    assert max(times["filter"], times["sort"], times["search"]) < 1500 and times["load"] < 5000
    opened.close()


def test_two_faces_cut_from_one_picture_have_each_their_own_on_the_page(tmp_path: Path) -> None:
    """The digest of a medium is that of the whole picture, which both share."""
    from emollm.evaluate.thumbnails import make_thumbnails
    from tests.emollm.evaluate.emobench import make_rows, write_emobench

    first, *_, other = (row for row in make_rows() if [it["kind"] for it in row["media"]] == ["image"])
    rows = [first, {**other, "media": [{**other["media"][0], "sha256": first["media"][0]["sha256"]}]}]
    assert first["media"][0]["data"] != other["media"][0]["data"]
    data = write_emobench(tmp_path / "emobench", rows)
    samples = [
        {"uid": row["uid"], "media_sha256": [it["sha256"] for it in row["media"]], "demonstration": False}
        for row in rows
    ]
    made = make_thumbnails(str(data), samples, 10**6)
    assert len({made[row["uid"]].uri for row in rows}) == 2
