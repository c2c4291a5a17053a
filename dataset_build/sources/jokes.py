"""Jokes against other sentences, as pictures of text: is it a joke? (humor, a demonstration)

Yes: one-liners. No: sentences of New York Times editorials, film reviews and Amazon reviews. The two are separable by
style alone (punctuation, length, case), so a score here says that the path works, nothing about humor.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from dataset_build.labels import YES_NO
from dataset_build.schema import Record, Reject
from dataset_build.sources import base, texts

NAME = "jokes"
VERSION = "1"
TITLE = "One-line jokes against other sentences, as text cards"
LICENCE = "MIT (one-liner-joke, vaderSentiment)"
CITATION = (
    "npm one-liner-joke 1.2.2; C.J. Hutto and E. Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment "
    "Analysis of Social Media Text, ICWSM 2014 (vaderSentiment 3.3.2)"
)
LIMITS = (
    "Demonstration: jokes and the other texts differ in style; punctuation counts alone separate them well."
)
SIZE = "2,633 jokes and 23,703 other sentences"
DOWNLOAD = "`make samples` fetches the packages; root: the folder with jokes.json and the .tsv files"
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("humor",)
PICTURES: base.Pictures = "cards"
SPLIT: base.SplitMode = "shares"
GROUP_KEY = "text"
DEMONSTRATION = True

_OTHER_TEXTS = ("nyt", "movie", "amazon")


class Options(base.Options):
    """`per_label`: how many texts of each label are sampled, by the hash of the uid."""

    per_label: int = Field(100, ge=1)


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    wanted: set[str] = set()
    for label in YES_NO:
        eligible = (
            _uid(text)
            for text, of in _all(root)
            if of == label and not (text.error or texts.rule_against(text))
        )
        wanted |= texts.sample(eligible, options.per_label)
    for text, label in _all(root):
        yield _item(text, label, wanted, options)


def _all(root: str) -> Iterator[tuple[texts.Text, str]]:
    for text in texts.jokes(root):
        yield text, "Yes"
    for name in _OTHER_TEXTS:
        for text in texts.sentences(root, name):
            yield text, "No"


def _uid(text: texts.Text) -> str:
    return f"{NAME}/all/{text.native_id}"


def _item(text: texts.Text, label: str, wanted: set[str], options: Options) -> Record | Reject:
    uid = _uid(text)
    if text.error:
        return Reject(uid, NAME, None, "humor", "bad_row", text.error)
    why = texts.rule_against(text)
    if not why and uid not in wanted:
        why = f"not in the sample of {options.per_label} per label"
    if why:
        return Reject(uid, NAME, None, "humor", "source_rule", why)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="humor",
        split=None,
        media=(),
        label=label,
        native_label="joke" if label == "Yes" else text.native_id.partition("-")[0],
        licence_tag=LICENCE,
        options=YES_NO,
        text=text.body,
        label_rule="joke file or sentence file",
        group_keys={"text": texts.group_of(text.body)},
        demonstration=True,
    )
