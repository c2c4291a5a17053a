"""UR-FUNNY v2: is the last sentence of the clip a punchline? (TED talks)

Layout (github.com/ROC-HCI/UR-FUNNY): `data_folds.pkl` with the ids of train, dev and test, `language_sdk.pkl` with the
sentences of each id, `humor_label_sdk.pkl` with its 0 or 1; clips `urfunny2_videos/<id>.mp4`. The pickles are read as
plain data and cannot run code; the feature pickles beside them are not read.

Items are the ids of the folds. The label file knows thousands more, left over from version 1: they are no items.

The official split keeps speakers apart, but no file says who speaks: the group is the video, and splits drawn from other
rules than the official one could not keep speakers apart. A clip holds context and punchline; the intervals in
`language_sdk.pkl` are not used to cut it, because their reference point is not documented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.labels import YES_NO, yes_no
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, pickles, readers

NAME = "urfunny"
VERSION = "1"
TITLE = "UR-FUNNY v2: punchlines in TED talks"
LICENCE = "no licence published for the annotation; clips of TED talks, no redistribution"
CITATION = "Hasan et al., UR-FUNNY: A Multimodal Language Dataset for Understanding Humor, EMNLP 2019"
LIMITS = (
    "A sentence counts as humorous where the transcript marks laughter after it; these are prepared "
    "talks. Which talk or speaker a clip is from is not published."
)
SIZE = "10,166 clips, half of them humorous"
DOWNLOAD = (
    "the version 2 pickles and urfunny2_videos.zip through the links of github.com/ROC-HCI/UR-FUNNY; root: the folder "
    "with data_folds.pkl, language_sdk.pkl, humor_label_sdk.pkl and urfunny2_videos/"
)
EXPECTED = {"val": 980, "all": 10_166}
SUB_TASKS = ("humor",)
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "video"
DEMONSTRATION = False

_FOLDS = {"train": "train", "val": "dev", "test": "test"}

Options = base.Options


def read(root: str, options: base.Options) -> Iterator[Record | Reject]:
    path = readers.find(
        root, "data_folds.pkl", "urfunny2/data_folds.pkl", "extracted_features/data_folds.pkl"
    )
    folder = path.removesuffix("data_folds.pkl")
    folds = _mapping(root, path)
    # The README spells one of the names as langauge_sdk.
    sentences = _by_id(root, readers.find(root, f"{folder}language_sdk.pkl", f"{folder}langauge_sdk.pkl"))
    labels = _by_id(root, readers.find(root, f"{folder}humor_label_sdk.pkl"))
    clips = readers.folder(root, f"{folder}urfunny2_videos", "urfunny2_videos")
    for split, name in _FOLDS.items():
        for number, value in enumerate(_ids(root, path, folds, name)):
            yield _item(f"{path}, {name} entry {number}", split, number, value, sentences, labels, clips)


def _mapping(root: str, path: str) -> Mapping[Any, Any]:
    """A pickled dict. Raises BuildError."""
    value = pickles.load(root, path)
    if isinstance(value, Mapping):
        return value
    full = storage.join(root, path)
    raise BuildError(
        f"{full}: expected a pickled dict, found a {type(value).__name__}; fetch the source again"
    )


def _by_id(root: str, path: str) -> dict[str, Any]:
    """A pickled dict, its ids as texts."""
    return {_id(key): entry for key, entry in _mapping(root, path).items()}


def _ids(root: str, path: str, folds: Mapping[Any, Any], name: str) -> list[Any]:
    found: Any = folds.get(name)
    found = found.tolist() if hasattr(found, "tolist") else found  # a NumPy array
    if isinstance(found, (list, tuple)):
        return list(found)
    if isinstance(found, (set, frozenset)):
        return sorted(found, key=_id)  # a set has no order to keep
    kind = "nothing" if found is None else f"a {type(found).__name__}"
    raise BuildError(f"{storage.join(root, path)}: expected a list of ids under {name!r}, found {kind}")


def _item(
    where: str,
    split: str,
    number: int,
    value: Any,
    sentences: dict[str, Any],
    labels: dict[str, Any],
    clips: str,
) -> Record | Reject:
    video = _id(value)
    uid = f"{NAME}/{split}/{video or f'entry-{number}'}"
    texts = _texts(sentences.get(video)) if video else f"the id is {value!r:.60}; expected a whole number"
    if isinstance(texts, str):
        return Reject(uid, NAME, split, "humor", "bad_row", f"{where}: {texts}")
    native = _plain(labels.get(video))
    label = yes_no(readers.whole(native))
    if label is None:
        found = "has no label" if native is None else f"has the label {native!r:.60}"
        detail = f"{where}: video {video} {found} in humor_label_sdk.pkl; expected 0 or 1"
        return Reject(uid, NAME, split, "humor", "unknown_label", detail)
    punchline, *context = texts
    return Record(
        uid=uid,
        source=NAME,
        sub_task="humor",
        split=split,
        media=(MediaRef("video", f"{clips}/{video}.mp4"),),
        label=label,
        native_label=str(readers.whole(native)),
        licence_tag="urfunny-research",
        options=YES_NO,
        text=punchline,
        context=tuple(Turn("", sentence) for sentence in context),
        group_keys={"video": video},
    )


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own number; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value


def _id(value: Any) -> str:
    """The digits of an id; empty for anything else."""
    value = _plain(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**30:
        return str(value)
    digits = value if isinstance(value, str) and value.isascii() and value.isdigit() else ""
    return digits if len(digits) <= 30 else ""


def _texts(entry: Any) -> list[str] | str:
    """Punchline first, then the sentences of the context; or what is wrong with the entry of `language_sdk.pkl`."""
    if not isinstance(entry, Mapping):
        return "language_sdk.pkl has no entry with its sentences"
    punchline = _sentence(entry.get("punchline_sentence"))
    if not punchline:
        return f"punchline_sentence is {entry.get('punchline_sentence')!r:.60}; expected a text"
    context = entry.get("context_sentences", ())
    found = [_sentence(part) for part in context] if isinstance(context, (list, tuple)) else [None]
    sentences = [sentence for sentence in found if sentence is not None]
    if len(sentences) != len(found):
        return f"context_sentences is {context!r:.60}; expected a list of texts"
    return [punchline, *(sentence for sentence in sentences if sentence)]


def _sentence(value: Any) -> str | None:
    """A sentence, also where it is the words or the only text of a list; None where it is none."""
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    return _mend(value).strip() if isinstance(value, str) else None


def _mend(text: str) -> str:
    """Texts of a Python 2 pickle come as Latin-1; the bytes are UTF-8 where they can be."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return readers.mend_c1(text)
