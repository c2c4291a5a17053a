"""MER2024: which emotion does the person in this Chinese clip show?

Layout (github.com/zeroQiaoba/MERTools): `label-disdim.csv` (`name,discrete,valence`) for the 5,030 training clips in
`video-labeled/`, `label-transcription.csv` (`name,chinese,english`), and the unlabelled clips in
`video-unlabeled-with-test2noise/`, among which those of the two test sets are hidden. Their labels were published after the
challenge as `reference-semi.csv` (test1) and `reference-noise.csv` (test2, with added noise), named `test1-label.csv` and
`test2-label.csv` in some copies: without them there are no test rows. Clips without a row are never looked at.

The training clips are all labelled clips of MER2023, its test sets included.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataset_build.schema import Record, Reject
from dataset_build.sources import base, mer_rows, readers

NAME = "mer2024"
VERSION = "1"
TITLE = "MER2024: emotions in clips of Chinese films and television"
LICENCE = mer_rows.LICENCE
CITATION = (
    "Lian et al., MER 2024: Semi-Supervised Learning, Noise Robustness, and Open-Vocabulary Multimodal Emotion "
    "Recognition, MRAC workshop 2024"
)
LIMITS = (
    f"{mer_rows.NO_HOSTED_MODELS} Speakers and films are not named, so splits may share them. The training set is all of "
    "MER2023 with its test sets: never evaluate on MER2023 after training on it."
)
SIZE = "7,369 labelled clips (5,030 to train, 1,169 and 1,170 to test) and many without a label"
DOWNLOAD = (
    "after the licence agreement linked at github.com/zeroQiaoba/MERTools (MER2024); root: the folder with "
    "label-disdim.csv, label-transcription.csv and video-labeled/; for test rows also reference-semi.csv, "
    "reference-noise.csv and video-unlabeled-with-test2noise/"
)
EXPECTED = {"train": 5030, "test": 2339}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "clip"
DEMONSTRATION = False

Options = mer_rows.Options

_HIDDEN = ("video-unlabeled-with-test2noise", "video-unlabeled")
_TRAIN = mer_rows.Part("train", "train", ("label-disdim.csv",), ("video-labeled",))
_TESTS = (
    mer_rows.Part(
        "test1", "test", ("reference-semi.csv", "test1-label.csv"), ("MER2024_semi", "video-test1", *_HIDDEN)
    ),
    mer_rows.Part(
        "test2",
        "test",
        ("reference-noise.csv", "test2-label.csv"),
        ("MER2024_noise", "video-test2", *_HIDDEN),
    ),
)


def read(root: str, options: mer_rows.Options) -> Iterator[Record | Reject]:
    texts = mer_rows.transcript(root, options)
    yield from mer_rows.read(NAME, root, _TRAIN, texts, ".mp4", options)
    for part in _TESTS:
        if any(readers.exists(root, table) for table in part.tables):
            yield from mer_rows.read(NAME, root, part, texts, ".mp4", options)
