"""HarMeme (Harm-C and Harm-P): is this meme harmful? (memes about COVID-19 and about US politics)

Layout (github.com/LCS2-IIITD/MOMENTA): `Annotations/Harm-C/{train,val,test}.jsonl` and
`Annotations/Harm-P/{train,val,test}_v1.jsonl` below `HarMeme_V1/`; each line is `{"id", "image", "labels", "text"}`.
`labels` begins with not harmful, somewhat harmful or very harmful; the targets of the harm follow. `text` is what OCR
read in the picture. The pictures are a separate download, for which copies use several folders (options say which,
where none of the usual ones is right). Harm-C alone also comes in an older layout (github.com/di-dimitrov/harmeme).
Version 0 of Harm-P holds duplicates and is withdrawn by its authors: it is refused by name.

Two classes are made of three by the option `label_rule`: `harmful_merged` (as in the papers' two-class task) calls
somewhat and very harmful memes hateful, `very_only` only the very harmful ones.

Known dirt: an empty label (leaves as unknown_label); harmful memes without a target, harmless ones with one, several
targets (targets are not asked for: they are a group key); the same words in memes of different splits and of the other
set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import base, readers

NAME = "harmeme"
VERSION = "1"
TITLE = "HarMeme: harmful memes about COVID-19 (Harm-C) and US politics (Harm-P)"
LICENCE = "repository MIT; the memes were collected from the web, research use, no redistribution"
CITATION = (
    "Pramanick et al., Detecting Harmful Memes and Their Targets, Findings of ACL 2021 (Harm-C); Pramanick et al., "
    "MOMENTA, Findings of EMNLP 2021 (Harm-P)"
)
LIMITS = (
    "Harmful is wider than hateful: most harmful memes mock persons or parties. Two topics of one period; the text is "
    "raw OCR."
)
SIZE = "3,544 memes (Harm-C) and 3,470 memes (Harm-P)"
DOWNLOAD = (
    "HarMeme_V1/ of github.com/LCS2-IIITD/MOMENTA and the pictures linked there; root: the folder with "
    "HarMeme_V1/Annotations/ and the picture folders"
)
EXPECTED = {"train": 5_951, "val": 354, "test": 709}
SUB_TASKS = ("hate",)
PICTURES: base.Pictures = "memes"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "picture"
DEMONSTRATION = False

Set = Literal["harm_c", "harm_p"]
LEVELS = ("not harmful", "somewhat harmful", "very harmful")
_HARMFUL = {"harmful_merged": LEVELS[1:], "very_only": LEVELS[2:]}
_SPLITS = ("train", "val", "test")
_TOPS = ("", "HarMeme_V1/", "HarMeme/")
_FORK = "data/datasets/memes/defaults/"
_ANNOTATIONS: dict[Set, tuple[str, ...]] = {
    "harm_c": (
        *(f"{top}Annotations/Harm-C/{{split}}.jsonl" for top in _TOPS),
        f"{_FORK}annotations/{{split}}.jsonl",
        "annotations/{split}.jsonl",
    ),
    "harm_p": (
        *(f"{top}Annotations/Harm-P/{{split}}_v1.jsonl" for top in _TOPS),
        *(f"{top}Annotations/{{split}}_v1.jsonl" for top in _TOPS),
    ),
}
_HARM_P_V0 = (
    *(f"{top}Annotations/Harm-P/train.jsonl" for top in _TOPS),
    *(f"{top}HarMeme_V0_DataFiles_USPolitics/train.jsonl" for top in (*_TOPS, "HarMeme_V0/")),
)
_IMAGES: dict[Set, tuple[str, str]] = {
    "harm_c": ("harmeme_images_covid_19", "Harm-C"),
    "harm_p": ("harmeme_images_us_pol", "Harm-P"),
}


class Options(base.Options):
    """`sets` to read. `label_rule`: `harmful_merged` calls somewhat and very harmful memes hateful (the papers' two
    classes), `very_only` only the very harmful ones. `harm_c_images` and `harm_p_images`: the folder of the pictures,
    relative to the root, where it is none of the usual ones.
    """

    sets: tuple[Set, ...] = Field(("harm_c", "harm_p"), min_length=1)
    label_rule: Literal["harmful_merged", "very_only"] = "harmful_merged"
    harm_c_images: str = ""
    harm_p_images: str = ""


def read(root: str, options: Options) -> Iterator[Record | Reject]:
    wanted = tuple(dict.fromkeys(options.sets))
    paths = {(name, split): _annotations(root, name, split) for name in wanted for split in _SPLITS}
    given = {"harm_c": options.harm_c_images, "harm_p": options.harm_p_images}
    for (name, split), path in paths.items():
        folder = given[name].strip("/") or _images(root, name)
        for number, row in readers.json_lines(root, path):
            yield _item(path, name, split, number, row, folder, options)


def _annotations(root: str, name: Set, split: str) -> str:
    candidates = [pattern.format(split=split) for pattern in _ANNOTATIONS[name]]
    found = next((path for path in candidates if readers.exists(root, path)), None)
    old = next((path for path in _HARM_P_V0 if readers.exists(root, path)), None)
    if found is None and name == "harm_p" and old:
        raise BuildError(
            f"{root}/{old}: version 0 of Harm-P, which its authors withdrew because it holds duplicates; fetch "
            f"Annotations/Harm-P/{split}_v1.jsonl, or set options.sets to [harm_c]"
        )
    what = f"annotation file of {name} (leave it out with options.sets)"
    return found or readers.find(root, *candidates, what=what)


def _images(root: str, name: Set) -> str:
    usual, other = _IMAGES[name]
    return readers.folder(
        root,
        *(f"{top}HarMeme_Images/{usual}" for top in ("", *_TOPS[1:], "images/", "HarMeme_V1/images/")),
        *(f"{top}{folder}/{usual}" for top in _TOPS for folder in ("images", "Images")),
        *(f"{top}{folder}/{other}" for top in _TOPS for folder in ("images", "Images")),
        *(f"{top}{usual}" for top in _TOPS),
        f"{_FORK}images",
        *(f"{top}{folder}" for top in _TOPS for folder in ("images", "Images")),
    )


def _item(
    path: str,
    name: Set,
    split: str,
    number: int,
    row: dict[str, Any] | str,
    folder: str,
    options: Options,
) -> Record | Reject:
    where = f"{path} line {number}"
    native_id = row.get("id") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(native_id, str) or not 0 < len(native_id) <= 200:
        shown = row if isinstance(row, str) else f"id is {native_id!r:.80}, not a name"
        return Reject(
            f"{NAME}/{split}/{name}-line-{number}", NAME, split, "hate", "bad_row", f"{where}: {shown}"
        )
    uid = f"{NAME}/{split}/{native_id}"
    image, text, given = row.get("image"), row.get("text", ""), row.get("labels")
    if not isinstance(image, str) or not image or not isinstance(text, str):
        detail = f"{where} ({native_id}): expected texts in image and text, found {image!r:.80}, {text!r:.80}"
        return Reject(uid, NAME, split, "hate", "bad_row", detail)
    if not isinstance(given, list) or not given or not all(isinstance(label, str) for label in given):
        detail = (
            f"{where} ({native_id}): labels are {given!r:.120}, expected a list that begins with the harm"
        )
        return Reject(uid, NAME, split, "hate", "bad_row", detail)
    if given[0] not in LEVELS:
        detail = f"{where} ({native_id}): label {given[0]!r:.80} is not one of {', '.join(LEVELS)}"
        return Reject(uid, NAME, split, "hate", "unknown_label", detail)
    keys = {"picture": image.rpartition("/")[2] or image, "set": name}
    if given[1:]:
        keys["target"] = ",".join(sorted(given[1:]))
    return Record(
        uid=uid,
        source=NAME,
        sub_task="hate",
        split=split,
        media=(MediaRef("image", f"{folder}/{image}"),),
        label="Yes" if given[0] in _HARMFUL[options.label_rule] else "No",
        native_label=given[0],
        licence_tag="harmeme-research",
        options=labels.YES_NO,
        ocr_text=text,
        label_rule=options.label_rule,
        group_keys=keys,
    )
