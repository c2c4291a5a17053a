"""The register of known leaks between and inside public affective data sets, and what a build does about each.

Three kinds of guard:

forbidden pairs  Two sources that hold the same items under ids that cannot be matched, or with other labels. A recipe
                 that names both is refused before anything is read, unless its `leakage.allow_pairs` accepts the leak;
                 that is then a warning in the manifest and the card.
text overlaps    Two sources that share items which their texts give away. Rows are matched by normalised text; the one on
                 the training side is removed and listed in leakage.json with both uids and the name of the risk.
notes            What no rule can mend, or what `dataset_build.dedup` and `dataset_build.splits` already take care of. The
                 notes of the sources in a build go into its leakage.json, for whoever reads the scores.

The evidence was counted on the annotation files that the authors publish, unless it says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dataset_build.errors import BuildError

if TYPE_CHECKING:
    from dataset_build.index import Index
    from dataset_build.splits import Places

# Utterances shorter than this repeat by chance ("Oh my God!", "What are you doing?").
MIN_WORDS = 5
# Words inside memes are fewer, and chosen.
MIN_OCR_WORDS = 4

Pair = tuple[str, str]


class Risk(NamedTuple):
    """One known leak. `forbids` and `texts` are pairs of source names (a name twice: inside one source)."""

    name: str
    evidence: str
    guard: str
    forbids: tuple[Pair, ...] = ()
    texts: tuple[Pair, ...] = ()
    column: Literal["text", "ocr"] = "text"
    noted: tuple[str, ...] = ()  # sources that the note concerns, besides those of the pairs


class TextOverlap(NamedTuple):
    """Rows of two sources that are twins if their normalised text is the same and has at least `min_words` words."""

    name: str
    sources: Pair
    column: Literal["text", "ocr"]
    min_words: int


REGISTER: tuple[Risk, ...] = (
    Risk(
        "friends-lines-in-meld-and-mustard",
        "More than half of MUStARD's longer Friends utterances are also MELD utterances, nearly all in MELD's train split; "
        "the same holds for MUStARD++.",
        "A MELD row with the words of a MUStARD row leaves where it is nearer to training, and the other way round.",
        texts=(("meld", "mustard"), ("meld", "mustard_pp")),
    ),
    Risk(
        "mustard-inside-mustard-pp",
        "MUStARD++ holds all but two of MUStARD's items, with the same sarcasm labels but clips cut anew.",
        "One of the two per build; where both are allowed, rows with the same words are removed on the training side.",
        forbids=(("mustard", "mustard_pp"),),
        texts=(("mustard", "mustard_pp"),),
    ),
    Risk(
        "caer-s-frames-come-from-caer-clips",
        "CAER-S is described as frames of the CAER clips, but no name says of which, so a test frame cannot be traced "
        "to a training clip.",
        "One of the two per build.",
        forbids=(("caer", "caer_s"),),
    ),
    Risk(
        "mer2023-inside-mer2024-train",
        "The training set of MER2024 is all that MER2023 labelled, its test sets included.",
        "One of the two per build.",
        forbids=(("mer2023", "mer2024"),),
    ),
    Risk(
        "mmsd-and-mmsd2-share-pictures",
        "MMSD2.0 corrects the texts and labels of MMSD; ids and pictures are the same.",
        "One of the two per build.",
        forbids=(("mmsd", "mmsd2"),),
    ),
    Risk(
        "shows-shared-by-dialogue-sets",
        "MIntRec, MIntRec2.0, MELD and MUStARD cut clips from some of the same series. Few lines are in two of them word "
        "for word, but the faces, voices and rooms are the same.",
        "Rows with the same words leave on the training side; `shared_shows` in leakage.json counts the test rows of a show "
        "that another source trains on.",
        texts=(
            ("mintrec", "mintrec2"),
            ("meld", "mintrec2"),
            ("mustard", "mintrec2"),
            ("mustard_pp", "mintrec2"),
        ),
    ),
    Risk(
        "harm-memes-in-two-places",
        "Harm-C, Harm-P and Hateful Memes hold memes with the same words, also across the splits of Harm-C and Harm-P.",
        "A meme with the words of another one leaves where it is nearer to training.",
        texts=(("harmeme", "harmeme"), ("harmeme", "hateful_memes")),
        column="ocr",
    ),
    Risk(
        "caer-s-look-alikes-across-splits",
        "Some CAER-S frames are the same file in two splits, and many are consecutive frames with the same face box.",
        "Same bytes and look-alikes across splits are removed on the training side; val is carved from train by group.",
        noted=("caer_s",),
    ),
    Risk(
        "meld-splits-by-dialogue-only",
        "Nearly every MELD test utterance comes from an episode that also has training utterances, and most are by speakers "
        "heard in training. Scores are show- and speaker-dependent.",
        "None: the official split is kept, so that scores are comparable.",
        noted=("meld",),
    ),
    Risk(
        "mintrec-splits-by-utterance",
        "The splits of MIntRec were drawn by utterance: every episode is in all of them.",
        "None: the official split is kept; the torn groups are counted in leakage.json.",
        noted=("mintrec",),
    ),
    Risk(
        "mustard-labels-follow-speakers",
        "In MUStARD the show and the speaker nearly give the label away: two shows and some speakers are all but always "
        "sarcastic. Its five published folds share speakers.",
        "Report the speaker-independent setting (the source's option `split`) beside the folds.",
        noted=("mustard",),
    ),
    Risk(
        "one-face-set-under-two-names",
        "FER+ relabels the pictures of FER2013, and look-alikes lie across its Usage column.",
        "There is one source for both; look-alikes across splits are removed on the training side.",
        noted=("fer_plus",),
    ),
    Risk(
        "hateful-memes-repeat-by-design",
        "Hateful Memes repeats texts and pictures across splits on purpose (benign confounders); its two dev sets overlap.",
        "Rows are joined by id; a meme is a twin only if picture and words are the same. Read text-only baselines with that "
        "in mind.",
        noted=("hateful_memes",),
    ),
    Risk(
        "pictures-seen-in-pre-training",
        "EMOTIC is built on COCO and ADE20K, which common vision-language models were pre-trained on, test pictures "
        "included.",
        "None: read its scores as those of pictures already seen.",
        noted=("emotic",),
    ),
    Risk(
        "web-pictures-shared-between-sets",
        "FI, Emotion6 and EmoSet were all collected from photo-sharing sites by emotion word; nobody has published how much "
        "they share.",
        "Same bytes and look-alikes across sources are removed on the training side.",
        noted=("fi", "emotion6", "emoset"),
    ),
    Risk(
        "acted-sets-repeat-sentences",
        "The actors of CREMA-D, RAVDESS and IEMOCAP say the same sentences again and again, and RAVDESS publishes each take "
        "in up to three modalities.",
        "Splits are disjoint in actors or sessions.",
        noted=("crema_d", "ravdess", "iemocap"),
    ),
    Risk(
        "several-items-from-one-recording",
        "ExpW, EMOTIC and AffectNet cut several faces or persons out of one picture; the clips of DFEW come from films "
        "whose names are not published, so its folds may share films.",
        "Rows of one picture, clip or film stay together where the source says which it is.",
        noted=("expw", "emotic", "affectnet", "dfew"),
    ),
    Risk(
        "no-val-set-upstream",
        "These sources publish no validation set, and public code selects models on their test rows.",
        "Val is carved from train by group (k-fold sources: see `splits.fold_val`), never from test.",
        noted=("dfew", "caer_s", "raf_db", "affectnet"),
    ),
)  # fmt: skip

FORBIDDEN = {frozenset(pair): risk for risk in REGISTER for pair in risk.forbids}


def check_pairs(names: Collection[str], allowed: Iterable[Pair]) -> list[Risk]:
    """Refuse a build that names a forbidden pair; returns the risks of those pairs that the recipe allows.

    Raises BuildError naming both sources, why, and what to do.
    """
    accepted = {frozenset(pair) for pair in allowed}
    taken: list[Risk] = []
    refused: list[tuple[list[str], Risk]] = []
    for pair, risk in FORBIDDEN.items():
        if pair <= set(names):
            if pair in accepted:
                taken.append(risk)
            else:
                refused.append((sorted(pair), risk))
    if refused:
        lines = [f"{' and '.join(pair)} may not be in one build: {risk.evidence}" for pair, risk in refused]
        pairs = ", ".join(f"[{', '.join(pair)}]" for pair, _ in refused)
        raise BuildError(
            "the recipe mixes sources that leak into each other.\n  "
            + "\n  ".join(lines)
            + "\nTake one of the two, or "
            f"accept the leak with leakage.allow_pairs: [{pairs}]; the manifest and the card will then say so."
        )
    return taken


def warnings(allowed: Sequence[Risk]) -> list[str]:
    """What the manifest and the card say of forbidden pairs that were allowed."""
    return [
        f"{' and '.join(pair)} are both in this build although they leak into each other ({risk.name}): {risk.evidence} "
        "No score on one of them is valid for a model trained on the other."
        for risk in allowed
        for pair in risk.forbids
    ]


def text_overlaps(names: Collection[str]) -> list[TextOverlap]:
    """The text overlaps between sources of a build, in the order of the register."""
    return [
        TextOverlap(risk.name, pair, risk.column, MIN_WORDS if risk.column == "text" else MIN_OCR_WORDS)
        for risk in REGISTER
        for pair in risk.texts
        if set(pair) <= set(names)
    ]


def notes(names: Collection[str]) -> list[dict[str, Any]]:
    """The risks that concern the sources of a build: {name, sources, evidence, guard}."""
    found = []
    for risk in REGISTER:
        concerned = set(risk.noted) & set(names)
        for pair in (*risk.forbids, *risk.texts):
            concerned |= set(pair) if set(pair) <= set(names) else set()
        if concerned:
            found.append(
                {
                    "name": risk.name,
                    "sources": sorted(concerned),
                    "evidence": risk.evidence,
                    "guard": risk.guard,
                }
            )
    return found


def repeated_texts(index: Index, places: Places) -> list[dict[str, Any]]:
    """Texts of held-out rows that the same source also trains on: counted per source and split, nothing is removed.

    Short utterances repeat by chance, and official splits are kept as they are. A row with a fold counts as held out
    (split "folds") where its text is in another fold.
    """
    import numpy as np

    found = []
    codes = places.codes()
    for name in sorted(index.source_names):
        rows = index.rows_of([name])
        rows = rows[index.text[rows] >= 0]
        if places.n_folds.get(name):
            spread = np.unique(np.stack([index.text[rows], codes[rows]]), axis=1)[0]
            texts, counts = np.unique(spread, return_counts=True)
            repeated = rows[np.isin(index.text[rows], texts[counts > 1])]
            sides = {"folds": repeated}
        else:
            train = index.text[rows[places.split[rows] == 0]]
            held = {split: rows[places.split[rows] == code] for code, split in ((1, "val"), (2, "test"))}
            sides = {split: own[np.isin(index.text[own], train)] for split, own in held.items()}
        for split, repeated in sides.items():
            if len(repeated):
                long = int((index.text_words[repeated] >= MIN_WORDS).sum())
                found.append(
                    {"source": name, "split": split, "rows": len(repeated), f"of_{MIN_WORDS}_words": long}
                )
    return found


def shared_shows(index: Index, places: Places) -> list[dict[str, Any]]:
    """Held-out rows of one source whose show (film, series) another source of the build trains on."""
    trained: dict[int, Counter[str]] = {}
    held: dict[int, Counter[str]] = {}
    for name in index.source_names:
        rows = index.rows_of([name])
        rows = rows[index.show[rows] >= 0]
        for row in rows.tolist():
            fold = places.fold[row] >= 0
            show = int(index.show[row])
            if fold or places.split[row] == 0:
                trained.setdefault(show, Counter())[name] += 1
            if fold or places.split[row] != 0:
                held.setdefault(show, Counter())[name] += 1
    found = [
        {
            "show": index.show_names[show],
            "held_out": {"source": name, "rows": rows},
            "trained_on_in": sorted(others),
        }
        for show, sources in held.items()
        for name, rows in sources.items()
        if (others := set(trained.get(show, ())) - {name})
    ]
    return sorted(found, key=lambda entry: (entry["show"], entry["held_out"]["source"]))
