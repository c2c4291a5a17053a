"""Jokes tagged sarcastic against other jokes, as pictures of text: is it sarcastic? (sarcasm, a demonstration)

The tag is the package's; nobody checked it, and untagged jokes may well be sarcastic.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from dataset_build.labels import YES_NO
from dataset_build.schema import Record, Reject
from dataset_build.sources import base, texts

NAME = "sarcastic_jokes"
VERSION = "1"
TITLE = "Sarcastic against other one-line jokes, as text cards"
LICENCE = "MIT (one-liner-joke)"
CITATION = "npm one-liner-joke 1.2.2"
LIMITS = "Demonstration: an unchecked tag on short jokes, read from a picture of the text."
SIZE = "201 sarcastic and 2,432 other jokes"
DOWNLOAD = "`make samples` fetches the packages; root: the folder with jokes.json and the .tsv files"
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("sarcasm",)
PICTURES: base.Pictures = "cards"
SPLIT: base.SplitMode = "shares"
GROUP_KEY = "text"
DEMONSTRATION = True


class Options(base.Options):
    """`per_label`: how many jokes of each label are sampled, by the hash of the uid."""

    per_label: int = Field(80, ge=1)


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    wanted: set[str] = set()
    for label in YES_NO:
        eligible = (_uid(joke) for joke in texts.jokes(root) if _label(joke) == label and not _problem(joke))
        wanted |= texts.sample(eligible, options.per_label)
    for joke in texts.jokes(root):
        yield _item(joke, wanted, options)


def _uid(joke: texts.Text) -> str:
    return f"{NAME}/all/{joke.native_id}"


def _label(joke: texts.Text) -> str:
    return "Yes" if "sarcastic" in joke.tags else "No"


def _problem(joke: texts.Text) -> str:
    return joke.error or texts.rule_against(joke)


def _item(joke: texts.Text, wanted: set[str], options: Options) -> Record | Reject:
    uid = _uid(joke)
    if joke.error:
        return Reject(uid, NAME, None, "sarcasm", "bad_row", joke.error)
    why = texts.rule_against(joke)
    if not why and uid not in wanted:
        why = f"not in the sample of {options.per_label} per label"
    if why:
        return Reject(uid, NAME, None, "sarcasm", "source_rule", why)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="sarcasm",
        split=None,
        media=(),
        label=_label(joke),
        native_label="sarcastic" if _label(joke) == "Yes" else "not tagged sarcastic",
        licence_tag=LICENCE,
        options=YES_NO,
        text=joke.body,
        label_rule="the package's tag",
        group_keys={"text": texts.group_of(joke.body)},
        demonstration=True,
    )
