"""The hash columns of a converted row: all that the global decisions on duplicates and splits ever see of it.

They are small and of fixed size (digests, not texts), so that those of a whole build fit in memory at once.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataset_build.schema import Record

if TYPE_CHECKING:
    import pyarrow

# Inside a word they say nothing: that's, that’s and thats are one word. Everything else that is no letter or digit
# ends a word.
_APOSTROPHES = re.compile("['’‘ʼ`´]")
_WORD = re.compile(r"[^\W_]+")


def arrow_schema() -> pyarrow.Schema:
    """The columns of a shard's index.parquet, one row per converted record.

    `media` holds a digest of the identity of each medium, `content` one of media and text together. `text` and `ocr` are the
    digests of the normalised utterance (caption, tweet) and of the text inside the picture, `text_words` and
    `ocr_words` how many words they have. `fold` is the official one. `show` is the normalised show of the row.
    """
    import pyarrow as pa

    words = [("text_words", pa.int32()), ("ocr_words", pa.int32())]
    text = ("uid", "sub_task", "split", "label", "group", "content", "phash", "text", "ocr", "show")
    return pa.schema(
        [
            *((name, pa.string()) for name in text),
            *words,
            ("fold", pa.int32()),
            ("media", pa.list_(pa.string())),
            ("n_bytes", pa.int64()),
        ]
    )


def row(
    record: Record, group_key: str, identities: Sequence[str], phash: str = "", n_bytes: int = 0
) -> dict[str, Any]:
    """The hash columns of a record whose media have these identities; `phash` is that of the first picture."""
    text = [record.text if record.media else "", *(f"{turn.speaker}: {turn.text}" for turn in record.context)]
    own, ocr = normalised(record.text), normalised(record.ocr_text)
    return {
        "uid": record.uid,
        "sub_task": record.sub_task,
        "split": record.split,
        "label": record.label,
        "group": record.group_keys.get(group_key) or record.uid,
        "content": hashlib.sha256("\x1f".join([*identities, *text]).encode()).hexdigest(),
        "phash": phash,
        "text": _digest(own),
        "ocr": _digest(ocr),
        "show": normalised(record.group_keys.get("show", "")),
        "text_words": len(own.split()),
        "ocr_words": len(ocr.split()),
        "fold": record.fold,
        "media": sorted({_digest(identity) for identity in identities}),
        "n_bytes": n_bytes,
    }


def normalised(text: str) -> str:
    """Words of letters and digits alone, compatibility forms and case folded, one space between: what is compared.

    >>> normalised("That’s  GREAT -- isn't it?")
    'thats great isnt it'
    """
    folded = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_WORD.findall(folded))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32] if text else ""
