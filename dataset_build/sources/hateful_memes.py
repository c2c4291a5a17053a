"""Hateful Memes: is this meme hateful? (pictures with text in them, written so that neither alone tells)

Layout (the competition's zip, as facebookresearch/mmf reads it): `train.jsonl`, `dev_seen.jsonl`, `dev_unseen.jsonl`,
`test_seen.jsonl`, `test_unseen.jsonl` and `img/`; each line is `{"id", "img", "label", "text"}`. `id` is a number while
the file name is zero-padded, so the picture is found by `img`. `text` is what is written in the picture.
The zip of phase 1 has `dev.jsonl` (the later dev_seen) and `test.jsonl` (the pictures of test_seen, without labels).

Which rows validate and test: dev_seen and dev_unseen share 400 ids, so val is their union by id; the second occurrence
leaves as source_rule. Test is test_seen and test_unseen, the test sets of the two phases. Published numbers are on one
of them: options `val` and `test` choose, files that are not chosen are not read.

Known dirt: by design the same picture or the same text occurs with both labels (benign confounders), also across
splits. The fine-grained annotations published later differ from these labels in places and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from dataset_build import labels
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "hateful_memes"
VERSION = "1"
TITLE = "Hateful Memes: pictures and words that are hateful together"
LICENCE = (
    "Hateful Memes data set licence agreement: research only, no redistribution; pictures of Getty Images, to be "
    "attributed"
)
CITATION = (
    "Kiela et al., The Hateful Memes Challenge: Detecting Hate Speech in Multimodal Memes, NeurIPS 2020"
)
LIMITS = (
    "The memes are reconstructions with stock photographs, and English; texts repeat between splits with either label, "
    "so a text-only prior must not be read as understanding."
)
SIZE = "12,140 memes"
DOWNLOAD = (
    "hateful_memes.zip after accepting the licence agreement (the hosting page may be gone: bring your own copy); root: "
    "the folder with train.jsonl and img/"
)
EXPECTED = {"train": 8_500, "val": 1_040, "test": 3_000}
SUB_TASKS = ("hate",)
PICTURES: base.Pictures = "memes"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

_TOPS = ("", "data/", "hateful_memes/")
_MAX_ID_CHARS = 200
_PHASE_1 = {"dev_seen": "dev", "test_seen": "test"}


class Options(base.Options):
    """Which of the published dev and test files are val and test; several are one set, by id."""

    val: tuple[Literal["dev_seen", "dev_unseen"], ...] = Field(("dev_seen", "dev_unseen"), min_length=1)
    test: tuple[Literal["test_seen", "test_unseen"], ...] = Field(("test_seen", "test_unseen"), min_length=1)


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    train = readers.find(root, *(f"{top}train.jsonl" for top in _TOPS))
    top = train.removesuffix("train.jsonl")
    parts = {"train": ("train",), "val": options.val, "test": options.test}
    files = {split: _files(root, top, names) for split, names in parts.items()}
    for split, paths in files.items():
        first_seen: dict[str, str] = {}
        for path in paths:
            own: set[str] = (
                set()
            )  # a second row in the same file is a duplicate id, not the other file's twin
            for number, row in readers.json_lines(root, path):
                item = _item(path, split, number, row)
                native = item.uid.rpartition("/")[2]
                earlier = first_seen.setdefault(native, path)
                if earlier != path and native not in own:
                    item = _second(item, path, earlier)
                own.add(native)
                yield item


def _files(root: str, top: str, names: tuple[str, ...]) -> list[str]:
    """The files of a split; where only those of phase 1 are there, these."""
    phase_1 = [f"{top}{_PHASE_1[name]}.jsonl" for name in names if name in _PHASE_1]
    second = [f"{top}{name}.jsonl" for name in names]
    if phase_1 and not any(readers.exists(root, path) for path in second):
        return [readers.find(root, second[0], *phase_1)]
    return [readers.find(root, path) for path in second]


def _second(item: Record | Reject, path: str, earlier: str) -> Reject:
    """A row whose id an earlier file of the same split has: one item in two files, not an error."""
    detail = f"{path}: {item.uid} is in {earlier} too and was read from there"
    uid = f"{item.uid}@{path.rpartition('/')[2].removesuffix('.jsonl')}"
    return Reject(uid, NAME, item.split, "hate", "source_rule", detail)


def _item(path: str, split: str, number: int, row: dict[str, Any] | str) -> Record | Reject:
    where = f"{path} line {number}"
    name = path.rpartition("/")[2].removesuffix(".jsonl")
    if isinstance(row, str):
        uid = f"{NAME}/{split}/{name}-line-{number}"
        return Reject(uid, NAME, split, "hate", "bad_row", f"{where}: {row}")
    native_id, image, text = row.get("id"), row.get("img"), row.get("text", "")
    is_id = isinstance(native_id, (int, str)) and not isinstance(native_id, bool)
    if not is_id or not 0 < len(str(native_id).strip()) <= _MAX_ID_CHARS:
        uid = f"{NAME}/{split}/{name}-line-{number}"
        return Reject(uid, NAME, split, "hate", "bad_row", f"{where}: id is {native_id!r:.80}, not a number")
    uid = f"{NAME}/{split}/{native_id}"
    if not isinstance(image, str) or not image or not isinstance(text, str):
        detail = (
            f"{where} (id {native_id}): expected texts in img and text, found {image!r:.80}, {text!r:.80}"
        )
        return Reject(uid, NAME, split, "hate", "bad_row", detail)
    if "label" not in row and split == "test":
        detail = f"{where} (id {native_id}): published without a label, as in phase 1; use the later file"
        return Reject(uid, NAME, split, "hate", "source_rule", detail)
    if "label" not in row:
        return Reject(uid, NAME, split, "hate", "bad_row", f"{where} (id {native_id}): no label")
    native = row["label"]
    hateful = readers.whole(native)
    if hateful not in (0, 1):
        detail = f"{where} (id {native_id}): label {native!r:.80} is neither 0 (not hateful) nor 1 (hateful)"
        return Reject(uid, NAME, split, "hate", "unknown_label", detail)
    folder = path.rpartition("/")[0]
    return Record(
        uid=uid,
        source=NAME,
        sub_task="hate",
        split=split,
        media=(MediaRef("image", f"{folder}/{image}" if folder else image),),
        label="Yes" if hateful else "No",
        native_label=str(hateful),
        licence_tag="hateful-memes-research",
        options=labels.YES_NO,
        ocr_text=text,
        group_keys={"picture": image.rpartition("/")[2]},
    )
