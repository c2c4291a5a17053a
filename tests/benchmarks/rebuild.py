"""rebuild: ten sources are built; then the pictures of one are replaced, and the build is started again.

    python -m tests.benchmarks.rebuild again --trees FOLDER --out OUT

Ours is the second build in the folder of the first; the peer builds the changed sources from nothing. Equal work: both
end with the same digest over every file of the data set. Each source has its own layout; all hold generated photographs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import builds, harness, pictures
from tests.benchmarks.harness import Benchmark, Side, Size

COUNTS = {"smoke": 3, "normal": 400, "large": 1000}  # pictures of each source
CHANGED = "fi"


def sides(size: Size, folder: Path) -> tuple[Side, list[Side]]:
    count = COUNTS[size]
    megapixels = (0.1, 0.3) if size == "smoke" else pictures.MEGAPIXELS
    shown = pictures.tree(harness.CACHE / "pictures", 11 * count, megapixels=megapixels)
    trees = folder / "trees"
    if not (trees / "complete").exists():
        shutil.rmtree(trees, ignore_errors=True)
        files = sorted(shown.glob("image/*/*.jpg"), key=lambda path: path.stem[-6:])
        for place, (name, write) in enumerate({**WRITERS, "changed": WRITERS[CHANGED]}.items()):
            write(trees / name, files[place * count : (place + 1) * count])
        (trees / "complete").touch()

    def side(name: str, word: str) -> Side:
        argv = [sys.executable, "-m", "tests.benchmarks.rebuild", word, "--trees", str(trees)]
        return Side(name, [*argv, "--out", str(folder / word)])

    return side("one of ten sources changed", "again"), [side("full build", "full")]


# --- ten layouts -----------------------------------------------------------------------------------------------------


def _split(number: int) -> str:
    return ("train", "train", "test")[number % 3]


def _emoset(root: Path, files: Sequence[Path]) -> None:
    lists: dict[str, list[list[str]]] = {split: [] for split in builds.SPLITS}
    for number, file in enumerate(files):
        path = _put(file, root / f"image/{number}.jpg").relative_to(root).as_posix()
        lists[_split(number)].append(["anger", str(number), path, "none"])
    for split, rows in lists.items():
        (root / f"{split}.json").write_text(json.dumps(rows))


def _fi(root: Path, files: Sequence[Path]) -> None:
    for number, file in enumerate(files):
        _put(file, root / "emotion_dataset" / pictures.EMOTIONS[number % 8] / f"{number}.jpg")


def _caer_s(root: Path, files: Sequence[Path]) -> None:
    for number, file in enumerate(files):
        _put(file, root / _split(number) / ("Fear", "Happy")[number % 2] / f"{100 * number:04d}.png")


def _raf_db(root: Path, files: Sequence[Path]) -> None:
    lines = []
    for number, file in enumerate(files):
        name = f"{_split(number)}_{number:05d}"
        _put(file, root / f"basic/Image/aligned/{name}_aligned.jpg")
        lines.append(f"{name}.jpg {number % 7 + 1}")
    _write(root / "basic/EmoLabel/list_patition_label.txt", "\n".join(lines))


def _emotion6(root: Path, files: Sequence[Path]) -> None:
    emotions = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
    head = ["[image_filename]", "[valence]", "[arousal]", *(f"[prob. {name}]" for name in emotions)]
    lines = ["\t".join(head)]
    for number, file in enumerate(files):
        _put(file, root / f"images/joy/{number}.jpg")
        shares = ["1.0" if name == "joy" else "0.0" for name in emotions]
        lines.append("\t".join([f"joy/{number}.jpg", "5", "5", *shares]))
    _write(root / "ground_truth.txt", "\n".join(lines))


def _expw(root: Path, files: Sequence[Path]) -> None:
    lines = []
    for number, file in enumerate(files):
        _put(file, root / f"ExpW/image/origin/{number}.jpg")
        lines.append(f"{number}.jpg 0 10 10 300 300 63.4 {number % 7}")
    _write(root / "ExpW/label/label.lst", "\n".join(lines))


def _hateful_memes(root: Path, files: Sequence[Path]) -> None:
    rows: dict[str, list[str]] = {
        name: [] for name in ("train", "dev_seen", "dev_unseen", "test_seen", "test_unseen")
    }
    for number, file in enumerate(files):
        path = _put(file, root / f"img/{number:05d}.png").relative_to(root).as_posix()
        row = {"id": number, "img": path, "label": number % 2, "text": _text(number)}
        rows[list(rows)[number % 5]].append(json.dumps(row))
    for name, lines in rows.items():
        _write(root / f"{name}.jsonl", "\n".join(lines))


def _mmsd2(root: Path, files: Sequence[Path]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    for number, file in enumerate(files):
        _put(file, root / f"data/dataset_image/{10**17 + number}.jpg")
        rows[list(rows)[number % 3]].append(
            {"image_id": 10**17 + number, "text": _text(number), "label": number % 2}
        )
    for name, entries in rows.items():
        _write(root / f"data/text_json_final/{name}.json", json.dumps(entries))


def _mami(root: Path, files: Sequence[Path]) -> None:
    head = ["file_name", "label", "shaming", "stereotype", "objectification", "violence", "text"]
    for split in ("train", "validation", "test"):
        root.mkdir(parents=True, exist_ok=True)
        with open(root / f"{split}.tsv", "w", newline="") as stream:
            table = csv.writer(stream, delimiter="\t")
            table.writerow(["mifile_name" if split == "test" else "file_name", *head[1:]])
            for number, file in enumerate(files):
                if split == ("train", "validation", "test")[number % 3]:
                    folder = f"MAMI_2022_images/{'test' if split == 'test' else 'training'}_images"
                    _put(file, root / folder / f"{number}.jpg")
                    table.writerow([f"{number}.jpg", number % 2, 0, number % 2, 0, 0, _text(number)])


def _artemis(root: Path, files: Sequence[Path]) -> None:
    rows = [["art_style", "painting", "emotion", "utterance", "repetition"]]
    for number, file in enumerate(files):
        _put(file, root / f"wikiart/Cubism/a-painter_work-{number}.jpg")
        rows.append(["Cubism", f"a-painter_work-{number}", "awe", _text(number), "1"])
    with open(root / "artemis_dataset_release_v0.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def _text(number: int) -> str:
    return f"words of row {number}, which no other row says: {number * 7919}"


def _put(file: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, target)
    return target


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


WRITERS: dict[str, Callable[[Path, Sequence[Path]], None]] = {
    "artemis": _artemis,
    "caer_s": _caer_s,
    "emoset": _emoset,
    "emotion6": _emotion6,
    "expw": _expw,
    "fi": _fi,
    "hateful_memes": _hateful_memes,
    "mami": _mami,
    "mmsd2": _mmsd2,
    "raf_db": _raf_db,
}


# --- the two sides ---------------------------------------------------------------------------------------------------


def settings(trees: Path, out: Path, changed: bool) -> dict[str, Any]:
    roots = {name: trees / name for name in WRITERS}
    if changed:
        roots[CHANGED] = trees / "changed"
    return builds.recipe("bench-rebuild", out, roots, max_side_px=448)


def again(trees: Path, out: Path) -> dict[str, Any]:
    """The first build is kept beside `out` for the next run and copied by links: files are replaced, never changed."""
    first = out.with_name("first")
    builds.build(settings(trees, first, changed=False))
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(first, out, copy_function=os.link)
    return report(builds.build(settings(trees, out, changed=True)))


def full(trees: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    return report(builds.build(settings(trees, out, changed=True)))


def report(made: builds.Timed) -> dict[str, Any]:
    rows = sum(counts["kept"] for splits in made.manifest["sources"].values() for counts in splits.values())
    return {
        "seconds": made.seconds,
        "units": rows,
        "work": {"rows": rows, "digest": made.manifest["digest"]},
        "notes": {"versions": builds.versions("ray", "pillow")},
    }


BENCHMARKS = [
    Benchmark(
        name="rebuild",
        title="ten sources, the pictures of one replaced: the build in the old folder against one from nothing",
        unit="s per picture",
        target=0.15,
        sides=sides,
        better="less",
    )
]


def main() -> int:
    parser = argparse.ArgumentParser(description="One side of rebuild; prints its report.")
    parser.add_argument("side", choices=("again", "full"))
    parser.add_argument("--trees", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps((again if options.side == "again" else full)(options.trees, options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
