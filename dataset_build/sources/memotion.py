"""Memotion 7k: is the meme funny, sarcastic, offensive? (pictures with text; each meme serves humor, sarcasm and hate)

Layout. Train (Kaggle williamscott701/memotion-dataset-7k): `labels.csv` with image_name, text_ocr, text_corrected,
humour, sarcasm, offensive, motivational and overall_sentiment, pictures in `images/`. Test (SemEval-2020 task 8):
`2000_testdata.csv` with the texts, `Meme_groundTruth.csv` with `S_BBBB_HSOM` (sentiment; yes or no; degrees of humour,
sarcasm, offence, motivation), pictures in `2000_data/`. Columns are found by name in either spelling.

Each question is a scale of four words; `humor_from`, `sarcasm_from` and `hate_from` name the first word that counts as
Yes. The default is task B of SemEval, where every degree but the lowest counts; some authors do not count `general` as
sarcastic (`sarcasm_from: twisted_meaning`), and `hate_from: hateful_offensive` is closer to hate than to rudeness.
The rule is written into each record. The degrees of the test file decide, so that all rules apply to it too.

Without the test files all rows are train; `split: shares` draws val and test from train instead, and reads no test files.

Known dirt: text_corrected is empty (or `nan`) for some memes, whose raw OCR text is taken; cells hold newlines; pictures
have many suffixes, one is truncated, and some are very large.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.labels import YES_NO
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "memotion"
VERSION = "1"
TITLE = "Memotion 7k: humour, sarcasm and offence in memes"
LICENCE = "research use as of Kaggle and SemEval-2020; pictures of third parties, no redistribution"
CITATION = "Sharma et al., SemEval-2020 Task 8: Memotion Analysis - The Visuo-Lingual Metaphor!, SemEval 2020"
LIMITS = (
    "Degrees of humour, sarcasm and offence are opinions, and offence is not hate: what counts as Yes is this project's rule "
    "or SemEval's. Texts were read by OCR and corrected in part."
)
SIZE = "about 6,992 memes in train and 1,878 in test, each with three questions"
DOWNLOAD = (
    "memotion_dataset_7k from Kaggle (williamscott701/memotion-dataset-7k) and, for the official test, the test data "
    "and ground truth of SemEval-2020 task 8; root: the folder with labels.csv and images/, or the one above it"
)
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("humor", "sarcasm", "hate")
PICTURES: base.Pictures = "memes"
SPLIT: base.SplitMode = "official"
SPLIT_MODES: dict[str, base.SplitMode] = {"official": "official", "shares": "shares"}
GROUP_KEY = "picture"
DEMONSTRATION = False

# The scale of each question, from no to very much: the words of labels.csv, and the digits 0 to 3 of the test file.
SCALES = {
    "humor": ("not_funny", "funny", "very_funny", "hilarious"),
    "sarcasm": ("not_sarcastic", "general", "twisted_meaning", "very_twisted"),
    "hate": ("not_offensive", "slight", "very_offensive", "hateful_offensive"),
}
# Column names in the spellings of both files, lower case.
_COLUMNS = {"humor": ("humour", "humor"), "sarcasm": ("sarcasm",), "hate": ("offensive",)}
_NAMES, _LABELS = ("image_name",), ("labels",)
_TEXTS = ("text_corrected", "corrected_text", "text_ocr", "ocr_extracted_text", "ocr_text")
_TRUTH = re.compile(r"-?[01]_[01]{4}_([0-3])([0-3])([0-3])[0-3]")

_TRAIN_FOLDERS = ("", "memotion_dataset_7k/", "memotion_train_dataset_7k/")
_TEST_FOLDERS = (
    "", "memotion_test_dataset_7k/", "memotion_7k_test/", "memotion_test_data/test_data/", "test_data/",
)  # fmt: skip


class Options(base.Options):
    """`humor_from`, `sarcasm_from`, `hate_from`: from which word of its scale on a question is answered Yes.

    `split: shares` where only train is at hand.
    """

    humor_from: Literal["funny", "very_funny", "hilarious"] = "funny"
    sarcasm_from: Literal["general", "twisted_meaning", "very_twisted"] = "general"
    hate_from: Literal["slight", "very_offensive", "hateful_offensive"] = "slight"
    split: Literal["official", "shares"] = "official"

    def first_yes(self, sub_task: str) -> str:
        return {"humor": self.humor_from, "sarcasm": self.sarcasm_from, "hate": self.hate_from}[sub_task]


class _Meme(NamedTuple):
    """A meme: where its row is, its name, picture and text, and the source's word for each question.

    `problem` says why the row cannot be used, if so.
    """

    where: str
    line: int
    name: str
    path: str
    text: str
    words: Mapping[str, str]
    problem: str = ""


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    official = options.split == "official"
    path = readers.find(root, *(f"{folder}labels.csv" for folder in _TRAIN_FOLDERS))
    for meme in _train(root, path):
        yield from _items("train" if official else None, meme, options)
    folder = next(
        (place for place in _TEST_FOLDERS if readers.exists(root, f"{place}2000_testdata.csv")), None
    )
    if official and folder is not None:
        for meme in _test(root, folder):
            yield from _items("test", meme, options)


def _train(root: str, path: str) -> Iterator[_Meme]:
    pictures = readers.folder(root, f"{path.removesuffix('labels.csv')}images", "images")
    needed = [_NAMES, *_COLUMNS.values()]
    for row, cells in _rows(root, path, needed):
        name = _cell(cells, _NAMES)
        words = {sub_task: _cell(cells, columns) for sub_task, columns in _COLUMNS.items()}
        yield _Meme(
            f"{path}, row {row.line}", row.line, name, f"{pictures}/{name}", _text(cells), words, row.problem
        )


def _test(root: str, folder: str) -> Iterator[_Meme]:
    """The memes of the ground truth, with their texts; then those of the text file that the truth does not know."""
    path = f"{folder}2000_testdata.csv"
    # The second spelling, with a space, is that of the archive.
    truth = readers.find(root, f"{folder}Meme_groundTruth.csv", f"{folder}Meme_groundTruth .csv")
    pictures = readers.folder(root, f"{folder}2000_data", "2000_data")
    texts: dict[str, _Meme] = {}
    for row, cells in _rows(root, path, [_NAMES]):
        name = _cell(cells, _NAMES)
        meme = _Meme(
            f"{path}, row {row.line}", row.line, name, f"{pictures}/{name}", _text(cells), {}, row.problem
        )
        if row.problem or not name:
            yield meme
        else:
            texts.setdefault(name, meme)
    known: set[str] = set()
    for row, cells in _rows(root, truth, [_NAMES, _LABELS]):
        name, code = _cell(cells, _NAMES), _cell(cells, _LABELS)
        known.add(name)
        found = _TRUTH.fullmatch(code)
        problem = row.problem or (
            "" if found else f"the label is {code!r:.60}; expected S_BBBB_HSOM, as in 1_1101_2101"
        )
        words = (
            {sub_task: scale[int(found[place])] for place, (sub_task, scale) in enumerate(SCALES.items(), 1)}
            if found
            else {}
        )
        text = texts[name].text if name in texts else ""
        yield _Meme(f"{truth}, row {row.line}", row.line, name, f"{pictures}/{name}", text, words, problem)
    for name, meme in texts.items():
        if name not in known:
            yield meme._replace(problem=f"{truth} has no label for it")


def _rows(
    root: str, path: str, needed: Sequence[Sequence[str]]
) -> Iterator[tuple[readers.Row, dict[str, str]]]:
    """Rows with their cells by column name in lower case, `_` for a space. Raises BuildError for a missing column."""
    for row in readers.table(root, path, (), delimiter=","):
        cells = {name.lower().replace(" ", "_"): cell for name, cell in row.cells.items()}
        lacking = [
            names[0] for names in needed if not row.problem and not any(name in cells for name in names)
        ]
        if lacking:
            found = ", ".join(row.cells)[:300]
            raise BuildError(
                f"{storage.join(root, path)}: column {', '.join(lacking)} missing; found {found}"
            )
        yield row, cells


def _cell(cells: Mapping[str, str], names: Sequence[str]) -> str:
    return next((cells[name].strip() for name in names if name in cells), "")


def _text(cells: Mapping[str, str]) -> str:
    """The corrected text, or the raw one where that is empty; pandas writes an empty cell as nan."""
    texts = (cells.get(name, "").strip() for name in _TEXTS)
    return next((text for text in texts if text and text.lower() != "nan"), "")


def _items(split: str | None, meme: _Meme, options: Options) -> Iterator[Record | Reject]:
    uid = f"{NAME}/{split or 'all'}/{meme.name or f'row-{meme.line}'}"
    if meme.problem or not meme.name:
        detail = f"{meme.where}: {meme.problem or 'image_name is empty'}"
        yield from base.rejects(uid, NAME, split, SUB_TASKS, "bad_row", detail)
        return
    for sub_task, scale in SCALES.items():
        word, own = meme.words[sub_task], base.uid_for(uid, sub_task, SUB_TASKS)
        if word not in scale:
            detail = f"{meme.where} ({meme.name}): {_COLUMNS[sub_task][0]} is {word!r:.60}; expected one of {', '.join(scale)}"
            yield Reject(own, NAME, split, sub_task, "unknown_label", detail)
            continue
        first = options.first_yes(sub_task)
        yield Record(
            uid=own,
            source=NAME,
            sub_task=sub_task,
            split=split,
            media=(MediaRef("image", meme.path),),
            label="Yes" if scale.index(word) >= scale.index(first) else "No",
            native_label=word,
            licence_tag="memotion-research",
            options=YES_NO,
            ocr_text=meme.text,
            label_rule=f"yes from {first}",
            group_keys={"picture": meme.name},
        )
