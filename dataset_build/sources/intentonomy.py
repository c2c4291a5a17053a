"""Intentonomy: why would somebody post this picture? (web photographs, 28 intents, several per picture)

Layout (github.com/KMnP/intentonomy): `annotations/intentonomy_{train,val,test}2020.json`, each COCO-like with
`categories`, `images` (`id`, `filename`, …) and `annotations`. Training rows carry the annotators' soft votes
(`category_ids_softprob`, 28 multiples of 1/3, at the positions of the category ids); val and test rows carry the ids
that the authors settled on (`category_ids`), in some circulating copies as a vector of 28 instead. The pictures are
fetched by the authors' script into `images/`; many teams keep small copies as `images/low/<image id>.jpg`.

Known dirt: Unsplash addresses die over time, so pictures are missing in any new download: they leave as missing_media.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "intentonomy"
VERSION = "1"
TITLE = "Intentonomy: human intent behind web photographs"
LICENCE = (
    "annotations CC BY-NC 4.0 (LICENSE file; DATA.md says CC BY 4.0, the stricter counts); pictures under the Unsplash "
    "terms"
)
CITATION = "Jia et al., Intentonomy: a Dataset and Study towards Human Intent Understanding, CVPR 2021"
LIMITS = (
    "Several intents fit most pictures: the answer is the best supported one and the others are kept as further gold "
    "labels, so plain accuracy against one answer understates a model."
)
SIZE = "14,455 pictures"
DOWNLOAD = (
    "the three JSON files linked in DATA.md of github.com/KMnP/intentonomy and the pictures by its download script; "
    "root: the folder with annotations/ and images/"
)
EXPECTED = {"train": 12_740, "val": 498, "test": 1_217}
SUB_TASKS = ("intent",)
PICTURES: base.Pictures = "photographs"
ASKS: base.Asks = "posted"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

_NAMES = tuple(labels.INTENTONOMY)
_OPTIONS = tuple(labels.INTENTONOMY.values())
_MAX_ID_CHARS = 200
_LABEL_KEYS = ("category_ids_softprob", "category_ids", "image_category_id")  # the last: in renamed copies


class Options(base.Options):
    """`label_rule` says which soft votes count: `any_vote` (above 0, as published results do) or `majority_vote` (half
    or more); rows without a counting vote then leave as source_rule. `pictures` names the copies to read: the full
    ones, the low ones, or (auto) whichever is there, the full one first.
    """

    label_rule: Literal["any_vote", "majority_vote"] = "any_vote"
    pictures: Literal["auto", "full", "low"] = "auto"


class _Gold(NamedTuple):
    """Category ids, the label first."""

    ids: tuple[int, ...]
    reason: str = ""  # not empty: why there is no label, as a reject reason
    detail: str = ""


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    paths = {
        split: readers.find(
            root,
            f"annotations/intentonomy_{split}2020.json",
            f"annotation/intentonomy_{split}2020.json",
            f"intentonomy_{split}2020.json",
        )
        for split in ("train", "val", "test")
    }
    on_disk = frozenset(readers.listing(root, "images")) if readers.exists(root, "images") else frozenset()
    for split, path in paths.items():
        content = readers.json_value(root, path, dict)
        _check_categories(f"{root}/{path}", content.get("categories"))
        yield from _items(path, split, content, on_disk, options)


def _check_categories(where: str, categories: Any) -> None:
    """The ids decide what a vote's position means, so they must carry the published names."""
    found: dict[Any, Any] = {}
    for category in categories if isinstance(categories, list) else []:
        if isinstance(category, dict):
            found[readers.whole(category.get("id", category.get("category_id")))] = category.get("name")
    wrong = [
        f"{number}: {found.get(number)!r}, not {name!r}"
        for number, name in enumerate(_NAMES)
        if found.get(number) != name
    ]
    if wrong or len(found) != len(_NAMES):
        shown = "; ".join(wrong[:5]) or f"{len(found)} categories, not {len(_NAMES)}"
        raise BuildError(
            f"{where}: `categories` are not the 28 published ones ({shown}); the positions of the votes would mean "
            "something else. Fetch the authors' file"
        )


def _items(
    path: str, split: str, content: Mapping[str, Any], on_disk: frozenset[str], options: Options
) -> Iterator[Record | Reject]:
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise BuildError(f"{path}: expected the lists `images` and `annotations`; fetch the authors' file")
    by_id = {str(image["id"]): image for image in images if isinstance(image, dict) and "id" in image}
    annotated: set[str] = set()
    for number, row in enumerate(annotations):
        image_id = str(row["image_id"]) if isinstance(row, dict) and row.get("image_id") else ""
        annotated.add(image_id)
        yield _item(path, split, number, row, by_id.get(image_id), on_disk, options)
    for image_id in by_id:
        if image_id not in annotated:
            uid = f"{NAME}/{split}/{image_id[:_MAX_ID_CHARS]}"
            yield Reject(uid, NAME, split, "intent", "source_rule", f"{path}: listed without an annotation")


def _item(
    path: str, split: str, number: int, row: Any, image: Any, on_disk: frozenset[str], options: Options
) -> Record | Reject:
    if not isinstance(row, dict) or not 0 < len(str(row.get("image_id") or "")) <= _MAX_ID_CHARS:
        uid = f"{NAME}/{split}/row-{number}"
        detail = f"{path} annotation {number}: expected an object with image_id, found {row!r:.120}"
        return Reject(uid, NAME, split, "intent", "bad_row", detail)
    image_id = str(row["image_id"])
    uid = f"{NAME}/{split}/{image_id}"
    name = image.get("filename") if image else None
    if not isinstance(name, str) or not name:
        detail = f"{path} annotation {number}: `images` holds no filename for image_id {image_id}"
        return Reject(uid, NAME, split, "intent", "bad_row", detail)
    gold = _gold(row, options.label_rule)
    if gold.reason:
        return Reject(
            uid, NAME, split, "intent", gold.reason, f"{path} annotation {number} ({image_id}): {gold.detail}"
        )
    return Record(
        uid=uid,
        source=NAME,
        sub_task="intent",
        split=split,
        media=(MediaRef("image", _picture(name, image_id, on_disk, options)),),
        label=_OPTIONS[gold.ids[0]],
        native_label=_NAMES[gold.ids[0]],
        licence_tag="intentonomy-cc-by-nc-4.0",
        options=_OPTIONS,
        other_labels=tuple(_OPTIONS[number] for number in gold.ids[1:]),
        label_rule=options.label_rule if "category_ids_softprob" in row else "official",
        group_keys={"picture": image_id},
    )


def _picture(name: str, image_id: str, on_disk: frozenset[str], options: Options) -> str:
    full, low = f"images/{name}", f"images/low/{image_id}.jpg"
    if options.pictures == "auto":
        return low if full not in on_disk and low in on_disk else full
    return low if options.pictures == "low" else full


def _gold(row: Mapping[str, Any], rule: str) -> _Gold:
    key = next((key for key in _LABEL_KEYS if key in row), None)
    if key is None:
        return _Gold((), "bad_row", f"none of {', '.join(_LABEL_KEYS)} is there")
    value = row[key] if isinstance(row[key], list) else [row[key]]
    shown = f"{key} = {value!r:.200}"
    if key == "category_ids_softprob" or _is_vector(value):
        votes = [readers.number(vote) for vote in value]
        if len(votes) != len(_NAMES) or any(vote is None or not 0 <= vote <= 1 for vote in votes):
            return _Gold((), "bad_row", f"{shown}: expected {len(_NAMES)} numbers from 0 to 1")
        return _voted([vote or 0.0 for vote in votes], rule if key == "category_ids_softprob" else "any_vote")
    ids = [readers.whole(number) for number in value]
    unknown = [number for number in ids if number is None or not 0 <= number < len(_NAMES)]
    if unknown:
        return _Gold((), "unknown_label", f"{shown}: category ids are 0 to {len(_NAMES) - 1}")
    if not ids:
        return _Gold((), "bad_row", f"{shown}: no category")
    return _Gold(tuple(sorted({number for number in ids if number is not None})))


def _is_vector(value: Sequence[Any]) -> bool:
    """Whether 28 values are one per category. Ids would have to be all of 0 … 27, which no picture has."""
    return len(value) == len(_NAMES) and len(set(map(str, value))) < len(_NAMES)


def _voted(votes: Sequence[float], rule: str) -> _Gold:
    """The categories that count, the one with the most votes first; ties by id."""
    if not any(votes):
        return _Gold((), "bad_row", "no category has a vote")
    counting = [
        number for number, vote in enumerate(votes) if (vote > 0 if rule == "any_vote" else vote >= 0.5)
    ]
    if not counting:
        return _Gold((), "source_rule", f"no category has half of the votes (label_rule {rule})")
    return _Gold(tuple(sorted(counting, key=lambda number: (-votes[number], number))))
