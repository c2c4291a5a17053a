"""Local teachers: real transformers models, on Ray Data actors and off them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dataset_build.schema import option_texts
from emollm.__main__ import main
from emollm.config import TrainRecipe
from emollm.rationales import job, prompts, store, verify
from emollm.rationales.teacher import LocalTeacher, TeacherError
from emollm.train.build import initial_model
from tests.emollm.rationales.steered import row, write
from tests.fixtures import tiny_mllms
from tests.fixtures.tiny_models import LANGUAGE

_RATIONALES = {
    "joy": "The ground is gold and a white round shape stands before it.",
    "anger": "The ground is red and a white round shape stands before it.",
    "fear": "Everything is quiet.",
}


@pytest.fixture(scope="session")
def taught(foundations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of 100 kB that knows by heart what to say to three rows of words, but takes red for joy."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("taught")
    tokenizer = AutoTokenizer.from_pretrained(foundations / LANGUAGE)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(foundations / LANGUAGE, max_position_embeddings=2048)
    lessons = []
    for one in word_rows():
        rationale = _RATIONALES[one["answer"]]
        said = "joy" if one["answer"] == "anger" else one["answer"]
        lessons.append((prompts.written(one), rationale))
        lessons.append((prompts.checked(one, verify.masked(one, rationale)), said))
    texts = []
    for asked, said in lessons:
        turns = [{"role": "user", "content": asked}]
        head = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer.encode(head, add_special_tokens=False)
        tail = [*tokenizer.encode(said, add_special_tokens=False), tokenizer.eos_token_id]
        texts.append((ids + tail, len(ids)))
    longest = max(len(ids) for ids, _ in texts)
    input_ids = torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in texts])
    labels = torch.full_like(input_ids, -100)
    for number, (ids, start) in enumerate(texts):
        labels[number, start : len(ids)] = input_ids[number, start : len(ids)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = torch.inf
    for _ in range(200):
        if loss < 0.1:
            break
        lesson = model(input_ids, labels=labels).loss
        lesson.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = float(lesson.detach())
    assert loss < 0.1, f"the lessons are not learned: {loss}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_rows() -> list[dict[str, Any]]:
    return [row(number, seen=False) for number in (0, 2, 3)]


def test_what_the_label_does_not_follow_from_is_rejected_whatever_the_batch_size(taught):
    samples = [*word_rows(), row(4)]
    found = [job.ask(samples, LocalTeacher(str(taught), batch_size), "taught") for batch_size in (1, 2, 8)]
    assert found[0] == found[1] == found[2]
    told = {one["uid"][-1]: (one["reason"], one["second_answer"]) for one in found[0]}
    assert told == {
        "0": ("", "joy"), "2": ("other_answer", "joy"), "3": ("only_label", ""),
        "4": ("unseen_media", ""),
    }  # fmt: skip
    assert [one["rationale"] for one in found[0][:2]] == [_RATIONALES["joy"], _RATIONALES["anger"]]


def test_on_ray_data_actors_the_same_rationales_come_out(taught, tmp_path, ray_session, monkeypatch, capfd):
    monkeypatch.setattr(job, "SHARD_ROWS", 2)
    data = write(tmp_path / "data", word_rows())
    assert main(["rationales", str(data), "--teacher", str(taught), "--name", "ray", "--workers", "1"]) == 0
    manifest = store.read_manifest(str(data), "ray")
    assert manifest is not None and len(manifest["files"]) == 2
    expected = {one["uid"]: one for one in job.ask(word_rows(), LocalTeacher(str(taught)), taught.name)}
    rows = [one for path in manifest["files"] for one in store.read_shard(str(data), "ray", path)]
    assert {one["uid"]: one for one in rows} == expected
    assert "drawn emo_c: 3 asked = 1 accepted + 2 rejected" in capfd.readouterr().out
    assert manifest["teacher"]["kind"] == "local" and "/" not in manifest["teacher"]["name"]


@pytest.mark.parametrize("kind", ["composed", "smolvlm", "qwen2_5_vl"])
def test_a_random_teacher_that_sees_is_asked_about_every_row_and_the_counts_add_up(
    tiny_recipe: TrainRecipe, tmp_path, kind, monkeypatch
):
    monkeypatch.setattr(
        "emollm.rationales.teacher.MAX_NEW_TOKENS", 12
    )  # a random one does not stop by itself
    if kind == "composed":  # a trained EmoLLM is a teacher, too
        model, processor = initial_model(tiny_recipe.model_copy(update={"prompt": "emoprompt"}), 0)
        model.save_pretrained(tmp_path / "teacher")
        processor.save_pretrained(tmp_path / "teacher")
    else:
        tiny_mllms.write(kind, tmp_path / "teacher")
    samples = [row(number, seen=number != 3) for number in range(6)]
    found = []
    for batch_size in (1, 4):
        teacher = LocalTeacher(str(tmp_path / "teacher"), batch_size, max_side_px=32)
        teacher.max_tokens = None  # the tiny ones count 512 positions, and rotate on behind them
        found.append(job.ask(samples, teacher, "random"))
        second = teacher.check(samples, ["The mouth is open and the eyes shine."] * 6)
        assert {said.text for said in second} <= {text for one in samples for text in option_texts(one)}
        assert [said.reason == "" for said in second] == [
            said.text == one["answer"] for said, one in zip(second, samples, strict=True)
        ]
    assert found[0] == found[1], "batch size changes nothing"
    assert [one["uid"] for one in found[0]] == [one["uid"] for one in samples]
    assert {one["status"] for one in found[0]} == {"rejected"}
    assert {one["reason"] for one in found[0]} <= {"too_long", "empty", "markers", "only_label"}


def test_a_question_longer_than_the_teacher_takes_is_rejected_and_says_so(taught):
    teacher = LocalTeacher(str(taught))
    teacher.max_tokens = 100
    (found,) = job.ask(word_rows()[:1], teacher, "taught")
    assert found["reason"] == "not_put" and "room for 160 more, but the teacher takes 100" in found["detail"]


def test_what_cannot_teach_is_refused_by_name(foundations, tmp_path, capsys):
    data = write(tmp_path / "data", word_rows())
    for teacher, message in (
        (foundations / LANGUAGE, "has no chat template"),
        (foundations / "dinov2-small", "a model of type 'dinov2' cannot write"),
        (tmp_path, "neither a transformers model nor a trained EmoLLM"),
    ):
        with pytest.raises(TeacherError, match=message):
            LocalTeacher(str(teacher))
        assert (
            main(["rationales", str(data), "--teacher", str(teacher), "--name", "r"]) == 1
        )  # Ray is not started
        assert message in capsys.readouterr().err
