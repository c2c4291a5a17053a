"""The card of a build: what a person must find in it, for thirty sources as for one, without holding the rows."""

from __future__ import annotations

import io
import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_build import card, card_counts, card_plots, markdown, media, plots, schema
from dataset_build.card_counts import Stats, collect

WARNING = "mmsd and mmsd2 are both in this build although they leak into each other."


def row(source: str, number: int, split: str, sub_task: str = "emo_c", answer: str = "joy", **more) -> dict:
    medium = {
        "kind": "image", "data": [b"x"], "sha256": "0", "phash": "", "width": 64, "height": 40 + number % 30, "duration_s": None,
        "fps": None, "sample_rate": None,
    }  # fmt: skip
    empty = dict.fromkeys(schema.sample_schema().names)
    fields = {
        "uid": f"{source}/{split}/{number}", "source": source, "sub_task": sub_task, "split": split, "answer": answer,
        "media": [medium], "demonstration": False, "messages": [], "options": [], "other_answers": [], "group_keys": [],
    }  # fmt: skip
    return {**empty, **fields, **more}


def facts(split: str = "official", **more) -> dict:
    return {
        "title": "A set", "version": "1", "sub_tasks": ["emo_c"], "split": split, "group_key": "picture", "pictures": "photographs",
        "demonstration": False, "licence": "research only", "citation": "Somebody et al. 2020", "limits": "Small.", "folds": None,
        "groups_whole": True, **more,
    }  # fmt: skip


def build(
    out: Path, rows: list[dict], rejects: list[dict], duplicates: list[dict], leakage: dict, **manifest
) -> dict:
    """A folder as a build leaves it, of these rows, and its manifest."""
    files = {}

    def write(name: str, table: pa.Table) -> None:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out / name)
        files[name] = {"sha256": "", "rows": len(table), "bytes": (out / name).stat().st_size}

    for split, source in sorted({(one["split"], one["source"]) for one in rows}):
        own = [one for one in rows if (one["split"], one["source"]) == (split, source)]
        write(f"{split}/{source}-00000.parquet", pa.Table.from_pylist(own, schema.sample_schema()))
    write("rejects.parquet", pa.Table.from_pylist(rejects, schema.reject_schema()))
    write("duplicates.parquet", pa.Table.from_pylist(duplicates, schema.duplicate_schema()))
    (out / "leakage.json").write_text(json.dumps(leakage))
    files["leakage.json"] = {"sha256": "", "rows": 0, "bytes": 2}
    kept = Counter((one["source"], one["split"]) for one in rows)
    names = sorted({one["source"] for one in rows})
    return {
        "schema_version": "1.0", "digest": "d" * 64, "code": {"version": "1", "commit": "unknown", "dirty": None},
        "recipe": {
            "name": "many", "seed": 7, "media": {"video_frames": 4, "max_side_px": 256},
            "splits": {"folds": 4, "test_share": 0.3, "val_share": 0.1}, "instructions": {"answer_style": "mixed"},
        },
        "sources": {
            name: {
                split: {"records": n, "kept": n, "rejected": 0, "duplicates": 0}
                for (source, split), n in sorted(kept.items()) if source == name
            }
            for name in names
        },
        "source_facts": {name: facts() for name in names}, "warnings": [], "files": files, **manifest,
    }  # fmt: skip


def reject(
    number: int, source: str = "one", reason: str = "missing_media", detail: str = "a.jpg: gone"
) -> dict:
    names = {"uid": f"{source}/train/r{number}", "source": source, "split": "train", "sub_task": "emo_c"}
    return {**names, "reason": reason, "detail": detail}


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, dict]:
    rows = [row("one", n, split, answer=label) for n, (split, label) in enumerate(
        [("train", "joy"), ("train", "fear"), ("val", "joy"), ("test", "fear")])]  # fmt: skip
    rows += [row("two", n, "train" if n else "test", "hate", "Yes", fold=n) for n in range(3)]
    rejects = [reject(0), reject(1, detail="<script>alert(1)</script> | `x`\nsecond line " + "y" * 500)]
    rejects += [
        reject(n, "two", "source_rule", f"two/all/{n}: {n} annotations; the rule needs 3")
        for n in range(2, 9)
    ]
    duplicate = {
        "uid": "one/train/9", "source": "one", "split": "train", "sub_task": "emo_c", "twin_uid": "one/test/3",
        "twin_split": "test", "rule": "same_bytes_across_splits",
    }  # fmt: skip
    leakage = {
        "removed": [duplicate], "tied_groups": [{}], "conflicting_labels": [{}, {}],
        "straddling_groups": [{"source": "one", "group_key": "show", "groups": 6, "of": 9, "rows": 1234, "split_by": "official split"}],
        "reported_only": [{"source": "one", "split": "test", "rows": 12, "of_5_words": 3}],
        "shared_shows": [{"show": "friends", "held_out": {"source": "one", "rows": 1}, "trained_on_in": ["two"]}],
        "notes": [{"name": "n", "sources": ["one"], "evidence": "Frames repeat.", "guard": "None: reported."}],
    }  # fmt: skip
    made = build(tmp_path, rows, rejects, [duplicate], leakage, warnings=[WARNING])
    made["source_facts"]["two"] = facts("folds", folds=3, licence="CC BY-NC 4.0")
    return tmp_path, made


def test_the_card_says_what_matters(small):
    out, made = small
    files = card.make(str(out), made)
    text = files["README.md"].decode()
    for words in (
        "**7 samples** (4 train, 1 val, 2 test) out of 7 records from 2 sources",
        f"> **Warning: leaking sources.** {WARNING}",
        "| Emo-C (closed-set emotion) | 2 | 1 | 1 | 2 | one |",
        "| Humor | 0 | 0 | 0 | – | – | no sample in this build |",
        "| `one` | A set | 2 | 1 | 1 | 4 pictures |",
        "| fear | 1 | 0 | 1 | 1 |",
        "| one | missing_media | 2 |",
        "| missing_media | the annotation names a file that is not there | 2 | 1 |",
        "  * `` a.jpg: gone ``",
        "| two | N annotations; the rule needs N | 7 |",
        "| one | same bytes across splits | another split | 1 |",
        "one: its official split puts 6 of 9 groups (by `show`) on more than one side; 1,234 rows, all kept.",
        "one: 12 held-out rows (test) with words that it also trains on, 3 of them 5 words or more; all kept.",
        "2 pairs of rows have the same file and words, but different labels",
        "| friends | 1 of one | two |",
        "| one | Frames repeat. | None: reported. |",
        "| `two` | CC BY-NC 4.0 | Somebody et al. 2020 |",
        "Protocol k tests fold k and trains on the others",
        "| two | 1 | 1 | 1 |",
        "as the end of `provenance.template_id` says",
    ):
        assert words in text
    shown = set(re.findall(r"\((stats/\w+\.png)\)", text))
    assert set(files) == {"README.md", *shown}
    assert all(media.open_picture(files[name]).width > 400 for name in shown)


def test_strangers_text_neither_breaks_the_page_nor_runs_in_it(small):
    out, made = small
    text = card.render(made, collect(str(out), made))
    assert "`` <script>alert(1)</script> | ˋxˋ second line yyy" in text
    assert "y" * 300 not in text
    assert text.count("<details>") == text.count("</details>")
    for line in text.splitlines():
        if line.startswith("| ---"):
            width = line.count("|")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert width


def test_the_terminal_summary_has_ledger_labels_rejects_twins_and_warnings(small):
    out, made = small
    text = card.text_summary(made, collect(str(out), made))
    for words in (
        "records",
        "emo_c     one     fear",
        "missing_media",
        "a.jpg: gone",
        "N annotations",
        WARNING,
    ):
        assert words in text
    assert "for the sake of another split" in text


def test_a_rewritten_bank_is_named_with_its_model(small):
    out, made = small
    stats = collect(str(out), made)
    assert "language model" not in card.render(made, stats)
    stats.rewriting = {
        "model": "m-7b", "sentences": {"one": {"emo_c-00": "a", "emo_c-01": "b"}}, "kept": {"one": {"emo_c-02": "leak"}},
        "meaning": {"leak": "the sentence names an answer"},
    }  # fmt: skip
    text = card.render(made, stats)
    assert "2 wordings were made by the language model `m-7b`" in text
    assert "1 kept as they were: the sentence names an answer" in text


def many(n_sources: int = 30, n_labels: int = 45) -> Stats:
    stats = Stats()
    for number in range(n_sources):
        source = f"source_with_a_long_name_{number}"
        for label in range(n_labels):
            for split, n in (("train", 5_000 // (label + 1)), ("val", 3), ("test", 40)):
                stats.labels["emo_c", source, f"a rather long label, number {label}", split] += n
                stats.labels["intent", source, f"intent {label}", split] += n
        for sub_task in ("hate", "humor", "sarcasm"):
            stats.labels[sub_task, source, "Yes", "train"] += 10**number % 9_999_991
        for reason in schema.REJECT_REASONS:
            if reason != "source_rule":
                stats.faults[source, reason] += 10 ** (number % 6)
                stats.examples[source, reason] = ["x" * 1_000]
        for rule in range(40):
            stats.rules[source, f"rule {rule}"] += rule + 1
        stats.media[source, "image"] += 10
        stats.sides[source].update({64: 5, 100 + number: 9, 256: 2})
    return stats


def test_a_card_of_thirty_sources_stays_readable():
    stats = many()
    names = sorted({key[1] for key in stats.labels})
    made = build_manifest(names)
    text = card.render(made, stats)
    unfolded = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert len(unfolded.splitlines()) < 400
    assert len(unfolded) < 60_000
    assert "33 further labels" in text and "34 further rules" not in unfolded
    assert all(f"`{name}`" in unfolded for name in names)


def build_manifest(names: list[str]) -> dict:
    one = {"records": 5, "kept": 5, "rejected": 0, "duplicates": 0}
    return {
        "schema_version": "1.0", "digest": "d" * 64, "code": {"version": "1", "commit": "unknown", "dirty": None},
        "recipe": {
            "name": "many", "seed": 7, "media": {"video_frames": 4, "max_side_px": 256},
            "splits": {"folds": 4, "test_share": 0.3, "val_share": 0.1},
        },
        "sources": {name: dict.fromkeys(schema.SPLITS, one) for name in names},
        "source_facts": {name: facts() for name in names}, "files": {},
    }  # fmt: skip


def test_plots_of_thirty_sources_and_forty_five_labels_fit_a_page():
    from PIL import Image

    for name, data in card_plots.draw(many()).items():
        picture = Image.open(io.BytesIO(data))
        assert 500 < picture.width < 1_400 and 300 < picture.height < 2_000, name
        assert len(data) < 500_000, name
        dark = picture.convert("L").point(lambda level: 255 * (level < 200)).getbbox()
        assert dark is not None and dark[2] - dark[0] > 0.6 * picture.width, (
            name
        )  # something is drawn all over it


def test_plots_of_nothing_are_pictures_too():
    for data in card_plots.draw(Stats()).values():
        assert media.open_picture(data).width > 200


def test_the_rarest_labels_are_summed_up():
    counts = {f"label {n:02d}": {"train": 100 - n, "test": 1} for n in range(40)}
    shown = plots.folded(counts, most=10)
    assert list(shown)[:2] == ["label 00", "label 01"] and len(shown) == 10
    assert shown["31 others"] == {"train": sum(100 - n for n in range(9, 40)), "test": 31}
    assert sum(sum(part.values()) for part in shown.values()) == sum(
        sum(part.values()) for part in counts.values()
    )


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ({5: 1}, 0.5, 5),
        ({1: 1, 9: 1}, 0.5, 1),
        ({1: 1, 9: 1}, 1, 9),
        ({1: 1, 2: 8, 9: 1}, 0.25, 2),
        ({3: 2, 4: 2}, 0, 3),
    ],
)
def test_quantiles_of_counts(counts, share, value):
    assert plots._quantile(Counter(counts), share) == value


@pytest.mark.parametrize(
    ("detail", "rule"),
    [
        ("x/all/7: 2 annotations; the rules need 3", "N annotations; the rules need N"),
        ("artemis/all/a#1: awe and fear tie at 2 of 5", "… and … tie at N of N"),
        ("row 3: the take of speech/03-01.wav, which is used", "the take of … which is used"),
        ("skin tone 1f3fb is left out", "a skin tone outside the recipe's `tones`"),
        ("no colon here", "no colon here"),
    ],
)
def test_rows_left_out_are_counted_by_rule_not_by_row(detail, rule):
    assert card_counts._rule_name(detail) == rule


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(n_rejects: int) -> int:
        out = tmp_path / str(n_rejects)
        columns = {name: ["one"] * n_rejects for name in ("source", "split", "sub_task")}
        columns["uid"] = [f"one/train/{n}" for n in range(n_rejects)]
        columns["reason"] = ["missing_media" if n % 2 else "source_rule" for n in range(n_rejects)]
        letters = [
            chr(97 + n % 26) + chr(97 + n // 26 % 26) + chr(97 + n // 676 % 26) for n in range(n_rejects)
        ]
        columns["detail"] = [
            f"one/train/{n}: the word {letters[n]} is not used here" for n in range(n_rejects)
        ]
        made = build(out, [row("one", 1, "train")], [], [], {})
        table = pa.table(columns).select(schema.reject_schema().names).cast(schema.reject_schema())
        pq.write_table(table, out / "rejects.parquet", row_group_size=4096)
        del table, columns, letters
        tracemalloc.start()
        stats = collect(str(out), made)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(stats.faults.values()) + sum(stats.rules.values()) == n_rejects
        assert len(stats.rules) <= card_counts._MAX_RULES + 1
        assert stats.rules["one", card_counts.OTHER_RULES] > 0
        return found

    peak(8_192)  # the first call also imports
    assert peak(49_152) < 1.05 * peak(8_192)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, ""), (5, " (5 s)"), (125, " (2 min)"), (7_300, " (2.0 h)")]
)
def test_lengths_for_people(seconds, shown):
    assert markdown.length(seconds) == shown
