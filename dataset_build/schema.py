"""The data model: `Record` (what a source says), `Sample` (what a model sees), `Reject` (what was left out and why).

The ledger every build balances, per source and split: records = kept + rejected + duplicates.
Only the standard library is imported here; the Arrow schemas import pyarrow when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = "1.0"

SUB_TASKS = ("emo_c", "emo_o", "intent", "hate", "humor", "sarcasm")
CLOSED_SUB_TASKS = ("emo_c", "intent", "hate", "humor", "sarcasm")
SPLITS = ("train", "val", "test")

# What a message's content holds where a medium goes, in the order of `Sample.media`.
PLACEHOLDERS = {"image": "<image>", "video": "<video>", "audio": "<audio>"}

# Every row that is not kept leaves with one of these; a new reason is added here, never made up on the spot.
REJECT_REASONS = {
    "missing_media": "the annotation names a file that is not there",
    "empty_file": "the file has zero bytes",
    "not_media": "the bytes are not the kind of media the annotation says (text, a git-lfs pointer, ...)",
    "undecodable": "the header is media, but decoding fails",
    "too_large": "more pixels, frames, seconds or bytes than the limits allow",
    "path_outside_root": "the annotation's path leaves the source's root",
    "bad_time_range": "the clip's start and end do not describe a part of the file",
    "bad_row": "a field is missing or has a value that the source's format does not allow",
    "unknown_label": "the label is not in the source's vocabulary",
    "duplicate_id": "the source uses this id for an earlier row of the same split",
    "source_rule": "the source's own rule leaves the row out (outside the reject budget)",
}
# Reasons that a source's own rule explains; they do not count against the reject budget.
REASONS_OUTSIDE_BUDGET = ("source_rule",)

MediaKind = Literal["image", "video", "audio"]


@dataclass(frozen=True)
class Crop:
    """A rectangle of a picture or of every frame; what lies outside the picture is clamped.

    `unit` says what the corners are in: `px` of the file's own picture, or `share` of its width and height (0 to 1).
    """

    left: float
    top: float
    right: float
    bottom: float
    unit: Literal["px", "share"] = "px"


@dataclass(frozen=True)
class MediaRef:
    """Where a medium is: `path` relative to the source's root; `start_s`/`end_s` in seconds cut a clip.

    `pixels` is for sources that keep pictures inside their table (FER2013): the grey values (0 to 255) of a square
    picture, row by row, separated by spaces; `path` then names the table.
    """

    kind: MediaKind
    path: str
    start_s: float | None = None
    end_s: float | None = None
    crop: Crop | None = None
    pixels: str | None = None


@dataclass(frozen=True)
class Turn:
    """One earlier turn of a dialogue."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Record:
    """One annotation row serving one sub-task.

    `uid` is `source/split/native-id`, with `all` as the split of sources that have none; a row that serves several
    sub-tasks is one record each, `:<sub_task>` appended to the native id. `split` is None where the source has no
    official one. `label` is canonical (`dataset_build.labels`), `native_label` is the source's spelling.
    `other_labels` holds the further gold labels of multi-label sets. `options` are the labels to choose from
    (closed sub-tasks). `text` is the utterance, caption or tweet that comes with the media, said by `speaker` where
    known; `ocr_text` is what is written inside the picture; `context` are the turns before. `fold` is the official
    fold (0 … k−1) in which the row is a test row, for sources that publish folds. `demonstration` marks rows that only
    exercise the path: they stay out of the overall mean.
    """

    uid: str
    source: str
    sub_task: str
    split: str | None
    media: tuple[MediaRef, ...]
    label: str
    native_label: str
    licence_tag: str
    options: tuple[str, ...] = ()
    other_labels: tuple[str, ...] = ()
    text: str = ""
    speaker: str = ""
    ocr_text: str = ""
    context: tuple[Turn, ...] = ()
    fold: int | None = None
    label_rule: str = "official"
    group_keys: dict[str, str] = field(default_factory=dict)
    demonstration: bool = False


@dataclass(frozen=True)
class Reject:
    """A record that was not kept. `reason` is a key of `REJECT_REASONS`; `detail` names file, field, value, remedy."""

    uid: str
    source: str
    split: str | None
    sub_task: str
    reason: str
    detail: str

    def __post_init__(self) -> None:
        if self.reason not in REJECT_REASONS:
            raise ValueError(
                f"{self.uid}: reject reason {self.reason!r} is not one of {sorted(REJECT_REASONS)}"
            )


def sample_schema() -> pyarrow.Schema:
    """The Arrow schema of OUT/{train,val,test}/<source>-NNNNN.parquet, one Sample a row.

    `media[].data` holds encoded bytes, never pixels: one picture for an image, the frames (JPEG, time order) for a
    video, one FLAC/WAV file for audio. `media[].sha256` is that of the source file, shared by all parts
    that were cut from it: what tells two media apart is `data`. `phash` is the 64-bit perceptual hash as 16 hex digits
    (of the middle frame for a video, empty for audio). `fold`, where the source is split by
    k-fold, is the fold in which the sample is a test sample: protocol 0 is what the folders say, protocol k tests the
    samples of fold k and trains on the others (see `dataset_build.splits`).
    """
    import pyarrow as pa

    medium = pa.struct(
        [
            ("kind", pa.string()),
            ("data", pa.list_(pa.binary())),
            ("sha256", pa.string()),
            ("phash", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("duration_s", pa.float64()),
            ("fps", pa.float64()),
            ("sample_rate", pa.int32()),
        ]
    )
    return pa.schema(
        [
            ("uid", pa.string()),
            ("source", pa.string()),
            ("sub_task", pa.string()),
            ("split", pa.string()),
            ("fold", pa.int32()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("options", pa.list_(pa.string())),
            ("answer", pa.string()),
            ("other_answers", pa.list_(pa.string())),
            ("media", pa.list_(medium)),
            ("group_keys", pa.map_(pa.string(), pa.string())),
            ("demonstration", pa.bool_()),
            ("n_text_tokens", pa.int32()),
            (
                "provenance",
                pa.struct(
                    [
                        ("adapter_version", pa.string()),
                        ("media_settings", pa.string()),
                        ("template_id", pa.string()),
                        ("label_rule", pa.string()),
                        ("native_label", pa.string()),
                        ("licence_tag", pa.string()),
                    ]
                ),
            ),
        ]
    )


def reject_schema() -> pyarrow.Schema:
    """The Arrow schema of OUT/rejects.parquet."""
    import pyarrow as pa

    return pa.schema(
        [(name, pa.string()) for name in ("uid", "source", "split", "sub_task", "reason", "detail")]
    )


def duplicate_schema() -> pyarrow.Schema:
    """The Arrow schema of OUT/duplicates.parquet: `uid` was removed because of `twin_uid` by `rule`."""
    import pyarrow as pa

    names = ("uid", "source", "split", "sub_task", "twin_uid", "twin_split", "rule")
    return pa.schema([(name, pa.string()) for name in names])


# A Sample travels as a plain dict with the columns of `sample_schema()`.
Sample = dict[str, Any]

# In which form an answer is said. `answer` and `options` of a sample always hold the words; a sample whose message
# asks for another form has `+<style>` at the end of its template id.
ANSWER_STYLES = ("word", "letter", "letter_word")


def option_letter(place: int) -> str:
    """The letter shown before the option at `place`: A … Z, then AA, AB …"""
    return chr(65 + place) if place < 26 else f"A{chr(65 + place - 26)}"


def option_texts(sample: Mapping[str, Any]) -> list[str]:
    """What a model says for each option of a sample, in their order: `joy`, `C` or `(C) joy`.

    Raises ValueError for a style that this version does not know.
    """
    options = list(sample["options"] or ())
    style = ((sample.get("provenance") or {}).get("template_id") or "").partition("+")[2] or "word"
    if style == "word":
        return options
    if style == "letter":
        return [option_letter(place) for place in range(len(options))]
    if style == "letter_word":
        return [f"({option_letter(place)}) {option}" for place, option in enumerate(options)]
    raise ValueError(f"answer style {style!r} is not one of {', '.join(ANSWER_STYLES)}")


def answer_text(sample: Mapping[str, Any]) -> str:
    """What a model should say to a sample: its answer in the form that the message asks for."""
    options, answer = list(sample["options"] or ()), str(sample["answer"])
    return option_texts(sample)[options.index(answer)] if answer in options else answer


def answer_word(sample: Mapping[str, Any], said: str) -> str:
    """The inverse of `answer_text`: the option's word for what was said, which stays as it is where it is no option."""
    options, texts = list(sample["options"] or ()), option_texts(sample)
    return options[texts.index(said)] if said in texts else said
