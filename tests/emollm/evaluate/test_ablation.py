"""What is left of a message when media or words are withheld, for messages as a build writes them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dataset_build import instructions
from dataset_build.labels import EMOJI_FEELINGS
from dataset_build.schema import Crop, MediaRef, Record, Turn
from emollm.evaluate.ablation import CONTENT_FREE, CONTENT_FREE_TEXT, IMAGE_ONLY, NONE, TEXT_ONLY, ablated

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30)


def asked(text: str, ocr: str, speaker: str, turns: list[str], media: str, sub_task: str) -> dict[str, Any]:
    """A row as `dataset_build.instructions.ask` words it."""
    options = EMOJI_FEELINGS if sub_task == "emo_c" else ("Yes", "No") if sub_task == "humor" else ()
    pictures = [MediaRef("image", "a.png"), MediaRef("image", "a.png", crop=Crop(0, 0, 1, 1))]
    refs = {"part": pictures, "clip": [MediaRef("video", "a.mp4"), MediaRef("audio", "a.mp4")]}.get(
        media, pictures[:1]
    )
    record = Record(
        "s/all/1", "s", sub_task, None, tuple(refs), "joy", "joy", "MIT", tuple(options), text=text, ocr_text=ocr,
        speaker=speaker, context=tuple(Turn("Ann", turn) for turn in turns),
    )  # fmt: skip
    kinds = [ref.kind for ref in refs]
    content = instructions.ask(record, kinds).content
    return {
        "uid": record.uid,
        "messages": [{"role": "user", "content": content}],
        "media": [{"kind": k} for k in kinds],
    }


def message(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"]


@given(WORDS, WORDS, WORDS, st.lists(WORDS, max_size=3), st.sampled_from(("image", "part", "clip")),
       st.sampled_from(("emo_c", "emo_o", "humor")))  # fmt: skip
def test_image_only_is_the_same_question_without_any_words_of_the_sample(
    text, ocr, speaker, turns, media, sub_task
) -> None:
    row = asked(text, ocr, speaker, turns, media, sub_task)
    bare = asked("", "", "", [], media, sub_task)
    left = ablated(row, IMAGE_ONLY)
    assert left["media"] == row["media"]
    # The instruction may be one for clips with an utterance; all behind it is that of the sample without words.
    assert message(left).split("\n")[1:] == message(bare).split("\n")[1:]
    assert message(left).split("\n")[0] == message(row).split("\n")[0]


@given(WORDS, WORDS, st.sampled_from(("image", "part", "clip")))
def test_text_only_keeps_every_word_and_shows_nothing(text, ocr, media) -> None:
    row = asked(text, ocr, "", ["hello"], media, "humor")
    left = ablated(row, TEXT_ONLY)
    assert left["media"] == [] and not {"<image>", "<video>", "<audio>"} & set(message(left).split("\n"))
    assert message(row).startswith(message(left)) and message(row) != message(left)


def test_the_content_free_input_holds_the_question_the_options_and_n_a() -> None:
    row = asked("so funny", "", "Bob", ["hello"], "image", "humor")
    lines = message(ablated(row, CONTENT_FREE)).split("\n")
    assert lines[2:] == [CONTENT_FREE_TEXT] and lines[:2] == message(row).split("\n")[:2]
    assert lines[1].startswith("Options: ")
    assert ablated(row, NONE) is row


def test_a_row_is_not_changed_by_its_ablations() -> None:
    row = asked("so funny", "", "", [], "image", "humor")
    before = repr(row)
    for what in (TEXT_ONLY, IMAGE_ONLY, CONTENT_FREE):
        ablated(row, what)
    assert repr(row) == before
