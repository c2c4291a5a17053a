"""MMHS150K: is this tweet with its picture hateful? (tweets found by slur keywords, three annotators each)

Layout (gombru/HateSpeech and the set's own readme): `MMHS150K_GT.json`, one object from tweet id to `tweet_text`,
`labels` (three numbers), `labels_str` (the same as words) and addresses; `splits/{train,val,test}_ids.txt` with one id a
line; `img_resized/<id>.jpg`; `img_txt/<id>.json` with the text found in the picture, only where some was found, so that
its absence is normal. Ids have 19 digits and stay text.

Three rules that turn three labels into yes or no are in use, and they disagree: `majority_binary` (official: at least
two of three say some kind of hate), `any`, `all`. The majority over the six kinds is not offered: three different
kinds of hate would be a row without a label.

Known dirt: four rows have fewer than three annotations; under every rule they leave as source_rule. Tweets keep their
@names and t.co links. The same picture is tweeted again under other ids, in other splits too; the address of the
picture, where it is the same, is the group key `picture`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "mmhs150k"
VERSION = "1"
TITLE = "MMHS150K: hateful tweets with pictures"
LICENCE = "Twitter's terms; research use, no redistribution of tweets or pictures"
CITATION = "Gomez et al., Exploring Hate Speech Detection in Multimodal Publications, WACV 2020"
LIMITS = (
    "Tweets were collected by slur keywords and labelled by three crowd workers who often disagree; the words of the "
    "tweet decide most labels. val and test are balanced, train is not (about 22 % hate)."
)
SIZE = "149,823 tweets"
DOWNLOAD = (
    "MMHS150K.zip as linked from the project page of the paper; root: the folder with MMHS150K_GT.json, splits/, "
    "img_resized/ and img_txt/"
)
EXPECTED = {"train": 134_823, "val": 5_000, "test": 10_000}
SUB_TASKS = ("hate",)
# Many pictures of tweets are memes and screenshots: the same picture with other words is another item.
PICTURES: base.Pictures = "memes"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "tweet"
DEMONSTRATION = False

KINDS = ("NotHate", "Racist", "Sexist", "Homophobe", "Religion", "OtherHate")
_ANNOTATORS = 3
_NEEDED = {"majority_binary": 2, "any": 1, "all": 3}  # how many of the three must say hate
_TOPS = ("", "MMHS150K/")
_MAX_ID_DIGITS = 30


class Options(base.Options):
    """`label_rule`: a tweet is hateful if at least two of three annotators say so (`majority_binary`, official), if `any`
    does, or if `all` do. `ocr` False leaves the many small files of img_txt/ unread (on S3 each costs a request).
    """

    label_rule: Literal["majority_binary", "any", "all"] = "majority_binary"
    ocr: bool = True


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    path = readers.find(root, *(f"{top}MMHS150K_GT.json" for top in _TOPS))
    top = path.removesuffix("MMHS150K_GT.json")
    lists = {split: readers.find(root, f"{top}splits/{split}_ids.txt") for split in ("train", "val", "test")}
    truth = _truth(root, path)
    # One listing instead of a question per tweet: most tweets have no such file.
    with_ocr = frozenset(
        readers.listing(root, f"{top}img_txt")
        if options.ocr and readers.exists(root, f"{top}img_txt")
        else ()
    )
    listed: set[str] = set()
    for split, list_path in lists.items():
        for line, tweet in enumerate(readers.text(root, list_path).split("\n"), 1):
            tweet = tweet.strip()
            if tweet:
                listed.add(tweet)
                where = f"{list_path} line {line}"
                yield _item(root, top, where, split, tweet, truth.get(tweet), with_ocr, options)
    for number, tweet in enumerate(truth):
        if tweet not in listed:
            uid = f"{NAME}/all/{tweet if len(tweet) <= _MAX_ID_DIGITS else f'entry-{number}'}"
            detail = f"{path}: tweet {tweet[:80]} is in none of the id lists"
            yield Reject(uid, NAME, None, "hate", "source_rule", detail)


def _truth(root: str, path: str) -> dict[str, list[Any]]:
    """What the table says of a tweet; several entries where it is there several times."""
    truth: dict[str, list[Any]] = {}
    for tweet, entry in readers.json_items(root, path):
        truth.setdefault(tweet, []).append(entry)
    return truth


def _item(
    root: str,
    top: str,
    where: str,
    split: str,
    tweet: str,
    entries: list[Any] | None,
    with_ocr: frozenset[str],
    options: Options,
) -> Record | Reject:
    is_id = tweet.isascii() and tweet.isdigit() and len(tweet) <= _MAX_ID_DIGITS
    uid = f"{NAME}/{split}/{tweet if is_id else where.replace('/', '-').replace(' ', '-')}"

    def reject(reason: str, detail: str) -> Reject:
        return Reject(uid, NAME, split, "hate", reason, f"{where} (tweet {tweet[:80]}): {detail}")

    if not is_id:
        return reject("bad_row", "a tweet id is a number")
    if not entries or len(entries) > 1:
        many = f"{len(entries)} entries" if entries else "no entry"
        return reject("bad_row", f"MMHS150K_GT.json has {many} for this id, expected one")
    row = entries[0]
    if not isinstance(row, dict) or not isinstance(row.get("tweet_text"), str):
        return reject("bad_row", f"expected an object with tweet_text and labels, found {row!r:.120}")
    given, problem = _labels(row)
    if problem:
        return reject("bad_row", problem)
    unknown = [number for number in given if number is None or not 0 <= number < len(KINDS)]
    if unknown:
        return reject(
            "unknown_label",
            f"labels {row['labels']!r:.80}; 0 to {len(KINDS) - 1} stand for {', '.join(KINDS)}",
        )
    if len(given) < _ANNOTATORS:
        return reject("source_rule", f"{len(given)} annotations; the rules need {_ANNOTATORS}")
    ocr, problem = _ocr(root, f"{top}img_txt/{tweet}.json", with_ocr)
    if problem:
        return reject("bad_row", problem)
    hateful = sum(1 for number in given if number) >= _NEEDED[options.label_rule]
    keys = {"tweet": tweet}
    if isinstance(row.get("img_url"), str) and row["img_url"]:
        keys["picture"] = row["img_url"].rpartition("/")[2] or row["img_url"]
    return Record(
        uid=uid,
        source=NAME,
        sub_task="hate",
        split=split,
        media=(MediaRef("image", f"{top}img_resized/{tweet}.jpg"),),
        label="Yes" if hateful else "No",
        native_label=",".join(KINDS[number] for number in given if number is not None),
        licence_tag="twitter-research",
        options=labels.YES_NO,
        text=row["tweet_text"],
        ocr_text=ocr,
        label_rule=options.label_rule,
        group_keys=keys,
    )


def _labels(row: Mapping[str, Any]) -> tuple[list[int | None], str]:
    """The three labels as numbers, and what is wrong with them; the words beside them must say the same."""
    numbers, words = row.get("labels"), row.get("labels_str")
    if not isinstance(numbers, list) or len(numbers) > _ANNOTATORS:
        return [], f"labels are {numbers!r:.80}, expected a list of {_ANNOTATORS} numbers"
    given = [readers.whole(number) for number in numbers]
    known = [KINDS[number] if number is not None and 0 <= number < len(KINDS) else None for number in given]
    if words is not None and None not in known and words != known:
        return [], f"labels {numbers!r} and labels_str {words!r:.120} contradict each other"
    return given, ""


def _ocr(root: str, path: str, with_ocr: frozenset[str]) -> tuple[str, str]:
    """The text in the picture ("" where none was found), and what is wrong with its file."""
    if path not in with_ocr:
        return "", ""
    try:
        found = readers.json_value(root, path, dict).get("img_text", "")
    except BuildError as error:
        return "", str(error)
    if not isinstance(found, str):
        return "", f"{path}: img_text is {found!r:.80}, not a text"
    return found, ""
