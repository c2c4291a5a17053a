"""What a rationale must look like, what is masked before the second pass, and what the second pass must say."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS, MINTREC2_INTENTS
from dataset_build.schema import PLACEHOLDERS, SUB_TASKS
from emollm.prompting import ANSWER_MARK, reasoned
from emollm.rationales import prompts, store, verify
from emollm.rationales.store import RationalesError
from emollm.rationales.verify import MASK, REASONS, judged, masked, second_answer

LINE = "The eyes are wide open and the brows are drawn up high."


def question(sub_task: str, answer: str, options: tuple[str, ...] = (), style: str = "") -> dict:
    return {
        "uid": "s/all/1", "source": "s", "sub_task": sub_task, "options": list(options), "answer": answer, "media": [],
        "messages": [{"role": "user", "content": "What now?\n<image>"}],
        "provenance": {"template_id": f"{sub_task}-00{style}"},
    }  # fmt: skip


FEELING = question("emo_c", "joy", EMOJI_FEELINGS)
INTENT = question("intent", "Apologise", GESTURE_INTENTS)


@pytest.mark.parametrize(
    ("sample", "text", "expected"),
    [
        # every option, and words of feelings in any form; what can be seen stays
        (FEELING, "A broad smile and tears: joyful, not sad, a happy man.", "A broad smile and tears: ____, not ____, a ____ man."),
        (FEELING, "Furious and disappointed, he laughs.", "____ and ____, he laughs."),
        (FEELING, "Sickness, SICK, love-struck, loving", "____, ____, ____, ____"),
        # the inflections of an intent's words, whole ones only
        (INTENT, "She apologised, apologising again; he agrees, in disagreement.", "She ____, ____ again; he ____, in disagreement."),
        (INTENT, "He asks for help and asked  for help; help came.", "He ____ and ____; help came."),
        # in yes/no questions the words that are asked about, with their negation
        (question("hate", "No", ("Yes", "No")), "It is not really hateful, and isn't offensive. No, yes.", "It is ____, and ____. ____, ____."),
        (question("humor", "Yes", ("Yes", "No")), "A funny pun; no joke fails to amuse.", "A ____ ____; ____ fails to ____."),
        (question("sarcasm", "Yes", ("Yes", "No")), "Sarcastic, meant ironically, never literal.", "____, meant ____, ____."),
        # letters, where letters are the answer
        (question("emo_c", "joy", EMOJI_FEELINGS, "+letter"), "So option B, (C) it is.", "So ____, ____ it is."),
        (FEELING, "Vitamin B, the (C) sign.", "Vitamin B, the (C) sign."),
        # an open question has no options: its answer, and all that the table of synonyms knows
        (question("emo_o", "yearning"), "A yearning look, longing and calm.", "A ____ look, ____ and ____."),
    ],
)  # fmt: skip
def test_what_names_an_answer_is_masked_and_what_is_evidence_stays(sample, text, expected):
    found = masked(sample, text)
    assert found == expected
    assert masked(sample, found) == found


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(["The", "eyes", "are", "open", "so", "it", "is"]), max_size=8),
    place=st.integers(0, 8),
    options=st.sampled_from([EMOJI_FEELINGS, GESTURE_INTENTS, MINTREC2_INTENTS, ("Yes", "No")]),
    number=st.integers(0, 29),
    case=st.sampled_from([str, str.upper, str.lower, str.title]),
)
def test_no_option_of_any_vocabulary_survives_the_mask(words, place, options, number, case):
    task = {2: "hate", 8: "emo_c"}.get(len(options), "intent")
    task = "intent" if options == GESTURE_INTENTS else task
    option = options[number % len(options)]
    text = " ".join([*words[:place], case(option), *words[place:]])
    for gold in options[:2]:  # whatever is right, the same is hidden
        found = masked(question(task, gold, options), text)
        assert not re.search(rf"\b{re.escape(option)}\b", found, re.IGNORECASE) and MASK in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LINE, ""),
        (f'  "{LINE}"\n', ""),
        (f"<think>The correct answer is joy.\nSo I say: eyes.</think>\n\n{LINE}", ""),
        (f"**Rationale:** {LINE}\n\nAnswer: joy", ""),
        (f"{LINE} So this is joy.", ""),  # naming it is no fault: it is masked, and must follow from the rest
        ("", "empty"),
        (" \n** ", "empty"),
        ("Answer: joy", "empty"),
        ("joy", "only_label"),
        ("It is joy, happiness, gladness and delight.", "only_label"),
        ("word " * 81, "too_long"),
        ("a" * 701, "too_long"),
        (f"{LINE} <image>", "markers"),
        (f"{LINE}<|im_end|>", "markers"),
        (f"{LINE} ASSISTANT: well", "markers"),
        (f"{LINE} Answer: joy because of the many things that are to be seen in this very long rest of it", "markers"),
        ("We  meet AT NINE in room four", "repeats"),
        ("We meet at nine in room four, says he, and that is all there is.", ""),
        (f"{LINE} Hence the correct answer.", "mentions_label"),
        (f"{LINE} The answer is plain.", "mentions_label"),
        (f"{LINE} It was labelled as joy.", "mentions_label"),
        ("I'm sorry, but I can't assist with that.", "refused"),
        ("As an AI model I look at no faces at all, ever.", "refused"),
        ("Sorry, but I will not describe people like this one.", "refused"),
        ("He says I can't believe it, I'm sorry, with a <3 at the end of it.", ""),
    ],
)  # fmt: skip
def test_a_rationale_that_is_none_is_rejected_before_anybody_is_asked_again(text, reason):
    said = {
        **FEELING,
        "messages": [{"role": "user", "content": 'Which?\nText: "We meet at nine in room four."'}],
    }
    found = judged(said, text)
    assert found.reason == reason and (not reason or reason in REASONS)
    if not reason:
        assert found.rationale.startswith((LINE, "He says", "We meet")) and "\n" not in found.rationale


def test_a_reply_that_was_cut_off_is_too_long_however_short():
    assert judged(FEELING, LINE, cut_off=True).reason == "too_long"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=string.printable + "“”éß￼", max_size=300))
def test_whatever_a_teacher_writes_an_accepted_rationale_can_stand_before_an_answer(text):
    found = judged(FEELING, text)
    assert len(found.rationale) <= verify.MAX_CHARS
    if not found.reason:
        assert found.rationale == " ".join(found.rationale.split()) != ""
        assert not any(place in found.rationale for place in PLACEHOLDERS.values())
        # so the answer is what stands behind the only mark
        assert reasoned(found.rationale, "joy").split(ANSWER_MARK) == [found.rationale, "joy"]


@pytest.mark.parametrize(
    ("sample", "text", "said", "reason"),
    [
        (FEELING, "joy", "joy", ""),
        (FEELING, " Joy.\n", "joy", ""),
        (FEELING, "(A) joy", "joy", ""),
        (FEELING, "sadness", "sadness", "other_answer"),
        (FEELING, "joy or sadness", "joy or sadness", "unparsed"),
        (FEELING, "", "", "unparsed"),
        (FEELING, "I cannot answer that.", "I cannot answer that.", "refused"),
        (question("hate", "No", ("Yes", "No")), "No, it praises them.", "No", ""),
        (question("emo_o", "joy"), "happiness", "happiness", ""),
        (question("emo_o", "joy"), "fear", "fear", "other_answer"),
        (question("emo_o", "joy"), "who knows", "who knows", "unparsed"),
        (question("emo_o", "yearnfulness"), "Yearnfulness!", "Yearnfulness!", ""),  # a word no table knows: itself alone
        (question("emo_o", "yearnfulness"), "zzz", "zzz", "unparsed"),
    ],
)  # fmt: skip
def test_the_second_pass_must_say_the_label(sample, text, said, reason):
    assert second_answer(sample, text) == (said, reason)


def test_the_first_request_has_the_label_and_the_media_the_second_neither():
    for task in SUB_TASKS:
        sample = question(task, "joy", () if task == "emo_o" else EMOJI_FEELINGS)
        first, second = prompts.written(sample), prompts.checked(sample, "A ____ look.")
        assert first.endswith("Question: What now?\n<image>\nRight answer: joy")
        assert second.endswith("Question: What now?") and '"A ____ look."' in second
        assert "joy" not in second and "<image>" not in second
    several = {
        **FEELING,
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
    }
    assert "Question: User: Hi\nAssistant: Ho\n" in prompts.written(several)


def stored(uid: str, **changes: str) -> dict[str, str]:
    return dict.fromkeys(store.schema().names, "") | {"uid": uid, "source": "s", "sub_task": "hate"} | changes


def test_a_ledger_that_does_not_balance_gives_no_manifest(tmp_path):
    data, facts = str(tmp_path), {"planned": 3, "data_digest": "d"}
    store.write_shard(
        data,
        "r",
        "a.parquet",
        [stored("1", status="accepted"), stored("2", status="rejected", reason="empty")],
    )
    with pytest.raises(
        RationalesError, match="3 samples were to be asked, 2 were, 1 accepted and 1 rejected"
    ):
        store.write_manifest(data, "r", facts, ["a.parquet"])
    store.write_shard(data, "r", "b.parquet", [stored("2", status="accepted")])
    with pytest.raises(RationalesError, match="2 was asked twice"):
        store.write_manifest(data, "r", facts, ["a.parquet", "b.parquet"])
    store.write_shard(data, "r", "b.parquet", [stored("3", status="accepted", rationale="so")])
    found = store.write_manifest(data, "r", facts, ["b.parquet", "a.parquet"])
    assert (found["asked"], found["accepted"], found["rejected"]) == (3, 2, 1)
    assert store.accepted(data, "r", "d") == {"1": "", "3": "so"}
    (tmp_path / "rationales/r/b.parquet").write_bytes(b"half")
    with pytest.raises(RationalesError, match="b.parquet: missing or damaged"):
        store.accepted(data, "r", "d")
