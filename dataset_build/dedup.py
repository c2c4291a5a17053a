"""Duplicates and leakage: which rows are twins, which groups must share a fold, which row of two gives way.

Decided once, globally, on hash columns only. Three notions of a twin:

same bytes  the same source file (and the same part of it). Always a twin, whatever the label.
near        perceptual hashes that differ in at most `near_bits` (default 4) of 64 bits.
same text   the same normalised words, between the sources that the leakage register names (`dataset_build.leakage`).

What a near hash can say depends on how a source's pictures look, which each adapter declares:

photographs  near is near: two such photographs show the same thing.
drawings     emoji faces are variations of one yellow disc, and the hash hardly sees a mouth: at 4 bits it pairs the
             slightly smiling with the slightly frowning face of one vendor, and the imp with the smiling imp at 0.
             So drawings are near twins only if they also have the same sub-task and label: then the pair can give away
             an answer (hushed and astonished face), while a pair with different labels can only mislead.
cards        pictures of text: the hash sees the layout, not the words. Near says nothing; the same text gives the same
             bytes.
memes        the same template with other words is another item, and benign confounders (same picture, words changed so
             that the label turns) are the point of such sets. So memes are near twins only if the words in the picture
             are the same too.
clips        the middle frames of two neighbouring utterances show the same two people in the same room. So clips are
             near twins only if the same words, at least five of them, are said.
takes        acted sets have few sentences, said again and again before one wall: two actors with the same sentence are
             no twins, and neither are two feelings of one actor. Near says nothing, and neither do the words.

Two pictures of different kinds are near twins only if both kinds' conditions hold.

What follows from a twin:

* Sources whose folds are drawn here: the two groups are **tied** into the same fold first. No row is lost, and a
  tested emoji has no look-alike with its answer in training.
* Twins in different splits: the one nearer to training gives way (test stays before val before train; a row with a
  fold stays before val and train, because it is a test row once). It is listed in duplicates.parquet and leakage.json
  with its twin's uid and the rule. For same bytes this holds across sub-tasks and sources too.
* Twins in the same split: same bytes, text, sub-task and label → only the first by uid is kept. Where the labels
  differ, both rows stay and are listed in leakage.json as conflicting: that a source contradicts itself is its own
  statement, whichever row went would be our choice of the truth, and official test sets keep their size. Near twins in
  the same split stay too, unless the recipe's `within_split_near` asks to keep only the first of look-alike photographs
  with the same label: rows leave for the sake of another split or source, not for being alike. The same picture asked
  by two sub-tasks (emo_c and emo_o) is no duplicate.

Rows are decided one after the other, test side first, and each verdict is final, so a kept row never has a kept twin in
another place. Only rows that share a digest or have a near hash are looked at one by one; the rest is array work.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import near
from dataset_build.schema import SPLITS

if TYPE_CHECKING:
    import numpy as np

    from dataset_build.index import Index
    from dataset_build.leakage import TextOverlap
    from dataset_build.splits import Places

_SPLIT_RANK = {"test": 0, "val": 2, "train": 3}
_FOLD_RANK = 1
# Kinds of pictures of which a near hash says nothing.
_NEVER_NEAR = ("cards", "takes")
# Fewer words than this, and two clips say the same by chance ("Oh my God!").
MIN_CLIP_WORDS = 5


class Tie(NamedTuple):
    """Two groups that must share a fold, because of these two rows."""

    group_key: str
    groups: tuple[str, str]
    uids: tuple[str, str]
    rule: str


class Removal(NamedTuple):
    """Row `row` gives way to row `twin`."""

    row: int
    twin: int
    rule: str
    across_splits: bool


class Conflict(NamedTuple):
    """Two rows of one split with the same bytes, text and sub-task, but two labels."""

    row: int
    twin: int


class Verdicts(NamedTuple):
    """The rows that give way, by row, and the pairs that contradict each other and stay."""

    removed: dict[int, Removal]
    conflicts: list[Conflict]


class Rules(NamedTuple):
    """What counts as a twin: the dedup section of the recipe, and the register's text overlaps."""

    near_bits: int = 4
    within_split_near: bool = False
    texts: Sequence[TextOverlap] = ()


class Neighbours:
    """Near twins of rows, found without ever listing all pairs: 20,000 rows with one hash are 20,000 steps.

    Whether two rows with near hashes are twins depends on their kinds and on whether certain codes are equal. So each
    row is filed under (hash value, kind, the codes that a partner of some kind must share with it), and a row's twins
    are looked up under the values near its own.
    """

    def __init__(self, index: Index, rows: np.ndarray, near_bits: int) -> None:
        """`rows`: those that may be twins of each other."""
        import numpy as np

        self._index = index
        self._kind = [index.facts[name].pictures for name in index.source_names]  # by source code
        clips, never = (
            np.array([kind in kinds for kind in self._kind], bool)[index.source[rows]]
            for kinds in (("clips",), _NEVER_NEAR)
        )
        rows = rows[index.hashed[rows] & ~never & (~clips | (index.text_words[rows] >= MIN_CLIP_WORDS))]
        self._kinds = tuple(sorted({self._kind[code] for code in np.unique(index.source[rows]).tolist()}))
        values, value_of, counts = np.unique(index.phash[rows], return_inverse=True, return_counts=True)
        one, other = near.pairs(values, near_bits)
        lonely = counts == 1
        lonely[one] = lonely[other] = False
        both = np.concatenate([np.stack([one, other]), np.stack([other, one])], axis=1)
        both = both[:, np.argsort(both[0], kind="stable")]
        self._near_to = both[1]
        self._near_from = np.searchsorted(both[0], np.arange(len(values) + 1))
        alone = lonely[value_of]
        self.rows = rows[~alone]  # those that have a near hash beside them
        self._value = np.full(len(index), -1, np.int32)
        self._value[self.rows] = value_of[~alone]
        self._filed: dict[Hashable, dict[int, int]] = {}

    def twins(self, row: int) -> Iterator[dict[int, int]]:
        """Of each kind of filed row that is a near twin: place → the first such row that was filed with it."""
        for other in self.values_near(row):
            for kind in self._kinds:
                found = self._filed.get((other, kind, *self._condition(row, kind)))
                if found:
                    yield found

    def values_near(self, row: int) -> list[int]:
        """Codes of the hash values near the row's, its own first; none for a row that has no near one."""
        value = int(self._value[row])
        if value < 0:
            return []
        return [value, *self._near_to[self._near_from[value] : self._near_from[value + 1]].tolist()]

    def file(self, row: int, place: int) -> None:
        """Remember a row, so that later ones find it."""
        if self._value[row] >= 0:
            mine = self._kind[self._index.source[row]]
            for key in {self._condition(row, kind) for kind in self._kinds}:
                self._filed.setdefault((int(self._value[row]), mine, *key), {}).setdefault(place, row)

    def _condition(self, row: int, kind: str) -> tuple[Any, ...]:
        """The codes that a partner of this kind must have in common with the row, each with its name."""
        index = self._index
        both = (self._kind[index.source[row]], kind)
        return (
            *(("label", int(index.label[row])) if "drawings" in both else ()),
            *(("ocr", int(index.ocr[row])) if "memes" in both else ()),
            *(("text", int(index.text[row])) if "clips" in both else ()),
        )


def ties(index: Index, rows: np.ndarray, near_bits: int) -> list[Tie]:
    """Groups of these rows (of sources whose folds are drawn here) that a twin ties together.

    Not all pairs of twins, but enough of them that groups are connected if and only if twins connect them.
    """
    found: dict[tuple[int, int], Tie] = {}

    def tie(one: int, other: int, rule: str) -> None:
        mine, theirs = index.facts[index.source_of(one)], index.facts[index.source_of(other)]
        if mine.group_key == theirs.group_key and index.group[one] != index.group[other]:
            low, high = sorted((index.group_of(one), index.group_of(other)))
            pair = (
                int(min(index.group[one], index.group[other])),
                int(max(index.group[one], index.group[other])),
            )
            found.setdefault(pair, Tie(mine.group_key, (low, high), (index.uid(one), index.uid(other)), rule))

    first: dict[tuple[int, str], int] = {}
    for row in _by(index.uid_rank, _sharing_media(index, rows)):
        for medium in index.media_of(row).tolist():
            tie(
                first.setdefault((medium, index.facts[index.source_of(row)].group_key), row),
                row,
                "same_bytes",
            )
    neighbours = Neighbours(index, rows, near_bits)
    by_key = {name: number for number, name in enumerate(sorted({f.group_key for f in index.facts.values()}))}
    for row in _by(index.uid_rank, neighbours.rows):
        place = by_key[index.facts[index.source_of(row)].group_key]  # only groups of one key can be tied
        for twins in neighbours.twins(row):
            if place in twins:
                tie(twins[place], row, "near_duplicate")
        neighbours.file(row, place)
    return sorted(found.values())


def tied_groups(found: Sequence[Tie]) -> dict[tuple[str, str], str]:
    """(group key, group) → the name of its tied group: the smallest group it is tied to, over any number of steps."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while (above := parent.get(node, node)) != node:
            parent[node] = node = parent.get(above, above)  # halves the path, so that long chains stay cheap
        return node

    for tie in found:
        low, high = sorted((root((tie.group_key, tie.groups[0])), root((tie.group_key, tie.groups[1]))))
        parent.setdefault(low, low)
        parent[high] = low
    return {node: root(node)[1] for node in list(parent)}


def verdicts(index: Index, places: Places, rules: Rules) -> Verdicts:
    """The rows that give way to a twin, and the contradictions that stay."""
    import numpy as np

    everything = np.arange(len(index), dtype=np.int32)
    neighbours = Neighbours(index, everything, rules.near_bits)
    sharing = _sharing_media(index, everything)
    texts = _Texts(index, rules.texts)
    alike = _Alike(index, neighbours) if rules.within_split_near else None
    candidates = np.unique(np.concatenate([neighbours.rows, sharing, texts.rows]).astype(np.int32))
    rank = np.array([_SPLIT_RANK[name] for name in SPLITS], np.int8)[places.split[candidates]]
    rank[places.fold[candidates] >= 0] = _FOLD_RANK
    ordered = candidates[np.lexsort((index.uid_rank[candidates], rank))].tolist()
    place_of = places.codes()
    shared = np.zeros(len(index), bool)
    shared[sharing] = True
    by_medium: dict[int, dict[int, int]] = {}  # medium → place → first kept row
    by_content: dict[
        Hashable, dict[int, int]
    ] = {}  # same bytes, text and sub-task in one place → label → first row
    found = Verdicts({}, [])
    for row in ordered:
        place = int(place_of[row])
        media = index.media_of(row).tolist() if shared[row] else []
        same = (
            by_content.setdefault((int(index.content[row]), int(index.sub_task[row]), place), {})
            if media
            else {}
        )
        removal = _elsewhere((by_medium.get(medium, {}) for medium in media), row, place, "same_bytes")
        if removal is None and int(index.label[row]) in same:
            removal = Removal(row, same[int(index.label[row])], "same_bytes", False)
        removal = (
            removal
            or _elsewhere(neighbours.twins(row), row, place, "near_duplicate")
            or texts.twin(row, place)
            or (alike.twin(row, place) if alike else None)
        )
        if removal is not None:
            found.removed[row] = removal
            continue
        if same:
            found.conflicts.append(Conflict(row, min(same.values(), key=lambda twin: index.uid_rank[twin])))
        for medium in media:
            by_medium.setdefault(medium, {}).setdefault(place, row)
        same.setdefault(int(index.label[row]), row)
        neighbours.file(row, place)
        texts.file(row, place)
        if alike:
            alike.file(row, place)
    return found


class _Texts:
    """Rows of sources that the register names, filed by their normalised text."""

    def __init__(self, index: Index, overlaps: Sequence[TextOverlap]) -> None:
        import numpy as np

        self._index, self._overlaps = index, overlaps
        self._filed: dict[Hashable, dict[str, dict[int, int]]] = {}  # source → place → first kept row
        chosen = [np.empty(0, np.int64)]
        for overlap in overlaps:
            present = [index.rows_of([name]) for name in overlap.sources]
            if all(map(len, present)):
                chosen.append(np.unique(np.concatenate(present)))
        rows = np.unique(np.concatenate(chosen))
        self.rows = rows[(index.text_words[rows] > 0) | (index.ocr_words[rows] > 0)]
        self._listed = {name for overlap in overlaps for name in overlap.sources}

    def _keys(self, row: int) -> Iterator[tuple[Hashable, TextOverlap, str]]:
        """Where a row is filed, and the source in which its twins would be."""
        source, index = self._index.source_of(row), self._index
        if source not in self._listed:
            return
        for number, overlap in enumerate(self._overlaps):
            words = (index.ocr_words if overlap.column == "ocr" else index.text_words)[row]
            if source in overlap.sources and words >= overlap.min_words:
                code = int((index.ocr if overlap.column == "ocr" else index.text)[row])
                one, other = overlap.sources
                yield (number, code), overlap, other if source == one else one

    def twin(self, row: int, place: int) -> Removal | None:
        for key, overlap, partner in self._keys(row):
            removal = _elsewhere([self._filed.get(key, {}).get(partner, {})], row, place, "same_text")
            if removal:
                return removal._replace(rule=f"same_text:{overlap.name}")
        return None

    def file(self, row: int, place: int) -> None:
        for key, _, _ in self._keys(row):
            source = self._index.source_of(row)
            self._filed.setdefault(key, {}).setdefault(source, {}).setdefault(place, row)


class _Alike:
    """Look-alike photographs with the same label in the same place, for builds that keep only the first of them."""

    def __init__(self, index: Index, neighbours: Neighbours) -> None:
        self._index, self._neighbours = index, neighbours
        self._kept: dict[
            tuple[int, int, int], list[int]
        ] = {}  # (hash value, label, place) → kept rows, not of one file

    def twin(self, row: int, place: int) -> Removal | None:
        if not self._is_photograph(row):
            return None
        mine = set(self._index.media_of(row).tolist())
        for value in self._neighbours.values_near(row):
            for twin in self._kept.get((value, int(self._index.label[row]), place), ()):
                if set(self._index.media_of(twin).tolist()) != mine:
                    return Removal(row, twin, "near_duplicate", False)
        return None

    def file(self, row: int, place: int) -> None:
        """Remember a kept row. Two rows of different files never stay under one key, so two are enough to tell."""
        if self._is_photograph(row):
            for value in self._neighbours.values_near(row)[:1]:
                same = self._kept.setdefault((value, int(self._index.label[row]), place), [])
                if len(same) < 2:
                    same.append(row)

    def _is_photograph(self, row: int) -> bool:
        return self._index.facts[self._index.source_of(row)].pictures == "photographs"


def _elsewhere(found: Any, row: int, place: int, rule: str) -> Removal | None:
    """The removal of a row for the first kept twin that lies in another place."""
    for rows_by_place in found:
        for other, twin in rows_by_place.items():
            if other != place:
                return Removal(row, twin, rule if rule == "same_text" else f"{rule}_across_splits", True)
    return None


def _sharing_media(index: Index, rows: np.ndarray) -> np.ndarray:
    """Those of the rows that have a medium in common with another one of them."""
    import numpy as np

    owner = np.repeat(np.arange(len(index), dtype=np.int32), np.diff(index.media_from))
    inside = np.zeros(len(index), bool)
    inside[rows] = True
    media, owner = index.media[inside[owner]], owner[inside[owner]]
    counts = np.bincount(media) if len(media) else np.empty(0, np.int64)
    return np.unique(owner[counts[media] > 1]) if len(media) else np.empty(0, np.int32)


def _by(rank: np.ndarray, rows: np.ndarray) -> Any:
    """The rows in ascending rank, as plain numbers for loops."""
    import numpy as np

    return rows[np.argsort(rank[rows], kind="stable")].tolist() if len(rows) else np.empty(0, int).tolist()
