"""MMSD: is the tweet sarcastic? (a picture and its text)

Layout (github.com/headacheboy/data-of-multimodal-sarcasm-detection): `text/train.txt`, `text/valid2.txt` and
`text/test2.txt`, each line a Python list literal: `['<tweet id>', '<text>', label]` in train, and
`['<tweet id>', '<text>', hashtag label, human label]` in the other two. Pictures: the four archives of `image/`
unpacked, `<tweet id>.jpg`.

The label of train comes from the hashtag. In val and test people judged again (231 labels changed), and theirs counts
unless `label_rule` asks for the hashtag's.

The authors' loader passes over train tweets in which a word gives the answer away (sarcasm, irony, a link, …): 9,224 of
29,040 rows, which have no published picture. They come out as rejects by the source's rule, with the word.
The texts are lower case and hold `<user>`, `<num>` and `emoji_<n>` for what was taken out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from dataset_build.labels import YES_NO, yes_no
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "mmsd"
VERSION = "1"
TITLE = "MMSD: sarcasm in tweets with a picture"
LICENCE = "no licence published; tweets and pictures of Twitter users, no redistribution"
CITATION = "Cai et al., Multi-Modal Sarcasm Detection in Twitter with Hierarchical Fusion Model, ACL 2019"
LIMITS = (
    "Train is labelled by the hashtag that its author set. Hashtag words and emoji that are left in the texts give "
    "labels away; MMSD2.0 took them out."
)
SIZE = "24,635 tweets (19,816 train, 2,410 val, 2,409 test); its lists name 33,859"
DOWNLOAD = (
    "github.com/headacheboy/data-of-multimodal-sarcasm-detection with its picture archives unpacked; root: the folder "
    "with text/ and image/"
)
# Rows of the lists, those included that the word filter leaves out.
EXPECTED = {"train": 29_040, "val": 2_410, "test": 2_409}
SUB_TASKS = ("sarcasm",)
PICTURES: base.Pictures = "photographs"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "tweet"
DEMONSTRATION = False

# The words for which the authors' training loader passes over a tweet.
GIVEAWAYS = frozenset(
    (
        "exgag", "sarcasm", "sarcastic", "reposting", "<url>", "joke", "jokes", "humour", "humor", "irony", "ironic",
    )
)  # fmt: skip

_FILES = {"train": ("train.txt",), "val": ("valid2.txt", "valid.txt"), "test": ("test2.txt", "test.txt")}


class Options(base.Options):
    """`label_rule`: whose label counts in val and test. `word_filter`: the authors' filter of train."""

    label_rule: Literal["human", "hashtag"] = "human"
    word_filter: bool = True


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    paths = {
        split: readers.find(
            root, *(f"{folder}{name}" for folder in ("text/", "", "data/text/") for name in names)
        )
        for split, names in _FILES.items()
    }
    pictures = readers.folder(root, "image", "images", "dataset_image", "data/image")
    for split, path in paths.items():
        for number, line in enumerate(readers.text(root, path).split("\n"), 1):
            if line.strip():
                yield _item(f"{path}, line {number}", split, number, line, pictures, options)


def _item(where: str, split: str, number: int, line: str, pictures: str, options: Options) -> Record | Reject:
    row = _row(line)
    if isinstance(row, str):
        uid = f"{NAME}/{split}/line-{number}"
        return Reject(uid, NAME, split, "sarcasm", "bad_row", f"{where}: {row}")
    tweet, text, judged = row
    uid = f"{NAME}/{split}/{tweet}"
    # Only valid2 and test2 hold both labels, the human one last.
    rule = options.label_rule if len(judged) == 2 else "hashtag"
    native = judged[0] if rule == "hashtag" else judged[-1]
    label = yes_no(readers.whole(native))
    if label is None:
        detail = f"{where} (tweet {tweet}): the {rule} label is {native!r:.60}; expected 0 or 1"
        return Reject(uid, NAME, split, "sarcasm", "unknown_label", detail)
    if options.word_filter and split == "train":
        word = next((word for word in text.split() if word in GIVEAWAYS), "")
        if word:
            why = f"{where}: the word {word!r}, for which the authors' training loader leaves the tweet out"
            return Reject(uid, NAME, split, "sarcasm", "source_rule", why)
    return Record(
        uid=uid,
        source=NAME,
        sub_task="sarcasm",
        split=split,
        media=(MediaRef("image", f"{pictures}/{tweet}.jpg"),),
        label=label,
        native_label=str(native),
        licence_tag="mmsd-research",
        options=YES_NO,
        text=text,
        label_rule=rule,
        group_keys={"tweet": tweet},
    )


def _row(line: str) -> tuple[str, str, list[Any]] | str:
    """Tweet id, text and the one or two labels of a line, or what is wrong with it."""
    try:
        value = readers.literal(line)
    except ValueError as error:
        return str(error)
    if not isinstance(value, list) or not 3 <= len(value) <= 4:
        return f"expected [id, text, label] or [id, text, hashtag label, human label], found {value!r:.120}"
    found, text, *judged = value
    tweet = readers.digits(found)
    if not tweet:
        return f"the tweet's id is {found!r:.60}; expected at most 30 digits, as a text or a whole number"
    if not isinstance(text, str):
        return f"tweet {tweet}: the text is {text!r:.60}"
    return tweet, text, judged
