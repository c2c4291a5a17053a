"""MER2023: which emotion does the person in this Chinese clip show?

Layout (github.com/zeroQiaoba/MERTools): tables `train-label.csv`, `test1-label.csv`, `test2-label.csv`, `test3-label.csv`
with columns `name,discrete,valence` (no valence in test3), at the root or in `test-labels/`; clips
`{train,test1,test2,test3}/NAME.avi` (`mer2023train/train/` in some unpackings). A file whose suffix is another video's is
taken as well. All three test sets are test rows here, with the group key `part`: test2 has added noise, and test3 is the
labelled part of the semi-supervised set. Rows without a label leave by rule. A transcript (`name,chinese,english`) is used
where one lies at the root.
"""

from __future__ import annotations

from collections.abc import Iterator

from dataset_build.schema import Record, Reject
from dataset_build.sources import base, mer_rows

NAME = "mer2023"
VERSION = "1"
TITLE = "MER2023: emotions in clips of Chinese films and television"
LICENCE = mer_rows.LICENCE
CITATION = "Lian et al., MER 2023: Multi-label Learning, Modality Robustness, and Semi-Supervised Learning, ACM MM 2023"
LIMITS = (
    f"{mer_rows.NO_HOSTED_MODELS} Speakers and films are not named, so splits may share them. All labelled clips are in "
    "the training set of MER2024: never evaluate on MER2023 after training on MER2024."
)
SIZE = "5,030 labelled clips"
DOWNLOAD = (
    "after the licence agreement linked at github.com/zeroQiaoba/MERTools (MER2023); root: the folder with "
    "train-label.csv, test1-label.csv … and train/, test1/ …"
)
EXPECTED: dict[str, int] = {}
SUB_TASKS = ("emo_c", "emo_o")
PICTURES: base.Pictures = "clips"
SPLIT: base.SplitMode = "official"
GROUP_KEY = "clip"
DEMONSTRATION = False

Options = mer_rows.Options


def _part(name: str, split: str) -> mer_rows.Part:
    table = f"{name}-label.csv"
    of_tests = ("test-labels/", "test_labels/", "mer2023-test-labels/")
    tables = [f"{folder}{table}" for folder in ("", f"mer2023{name}/", *of_tests)]
    # The clips of test1 and test2 come in one archive.
    folders = (name, f"mer2023{name}/{name}", f"mer2023test1&2/{name}", f"{name}/{name}")
    return mer_rows.Part(name, split, tables, folders)


_PARTS = (_part("train", "train"), _part("test1", "test"), _part("test2", "test"), _part("test3", "test"))


def read(root: str, options: mer_rows.Options) -> Iterator[Record | Reject]:
    texts = mer_rows.transcript(root, options)
    for part in _PARTS:
        yield from mer_rows.read(NAME, root, part, texts, ".avi", options)
