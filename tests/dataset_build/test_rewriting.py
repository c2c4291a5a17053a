"""Rewriting against a real HTTP server: good, empty, leaking, option-changing, failing, slow and endless answers."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dataset_build import chat, instructions, rewriting, sources, storage
from dataset_build.errors import UsageError
from dataset_build.labels import EMOJI_FEELINGS, YES_NO
from dataset_build.recipe import BuildRecipe, load_recipe
from dataset_build.schema import MediaRef, Record

Reply = Callable[[str], tuple[int, bytes]]
KEY = "sk-very-secret-0123456789"


def said(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def reworded(sentence: str) -> tuple[int, bytes]:
    return said(f"Please: {sentence}")


class Endpoint:
    """An OpenAI-compatible server on a loopback port; `reply` makes (status, body) of the sentence it was sent."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.bodies, self.headers = reply, [], []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.bodies.append((self.path, body))
                endpoint.headers.append(dict(self.headers))
                sentence = body["messages"][-1]["content"].rpartition("Instruction: ")[2]
                status, data = endpoint.reply(sentence)
                try:
                    self.send_response(status)
                    if status == 302:
                        self.send_header("Location", "/elsewhere")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has given up, as some tests want
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], Endpoint]]:
    monkeypatch.setattr(chat, "PAUSES_S", (0.01, 0.01))
    started: list[Endpoint] = []

    def start(reply: Reply) -> Endpoint:
        started.append(Endpoint(reply))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.close()


def recipe(tmp_path: Path, url: str, names: tuple[str, ...] = ("jokes",), **more) -> BuildRecipe:
    section = {"base_url": url, "model": "m", "timeout_s": 5, **more}
    raw = {"name": "r", "out": str(tmp_path / "out"), "root": str(tmp_path), "seed": 3, "rewriting": section}
    return BuildRecipe.model_validate({**raw, "sources": [{"name": name, "root": "."} for name in names]})


def test_without_the_section_nothing_is_rewritten_or_asked(tmp_path):
    assert load_recipe("quickstart").rewriting is None
    found = rewriting.rewrite(
        recipe(tmp_path, "http://127.0.0.1:9").model_copy(update={"rewriting": None}), "w"
    )
    assert found == ({}, {}, "")
    (tmp_path / "rewriting.json").write_text("of an earlier build")
    assert rewriting.write_table(str(tmp_path), found) == {}
    assert not (tmp_path / "rewriting.json").exists()


def test_the_order_of_sources_in_the_recipe_changes_neither_what_is_asked_nor_the_file(tmp_path):
    one, other = (
        recipe(tmp_path, "http://h", names) for names in (("jokes", "gestures"), ("gestures", "jokes"))
    )
    assert list(rewriting.table(one)) == list(rewriting.table(other))


def test_every_sentence_a_source_can_ask_is_reworded_once(serve, tmp_path):
    endpoint = serve(reworded)
    made = recipe(tmp_path, endpoint.url, ("jokes", "gestures", "emoji_pictures"))
    found = rewriting.rewrite(made, str(tmp_path / "work"))
    banks = {"jokes": ["humor"], "gestures": ["intent"], "emoji_pictures": ["emo_c", "emo_o"]}
    for name, sub_tasks in banks.items():
        expected = {
            instructions.template_name(sub_task, "", number): f"Please: {text}"
            for sub_task in sub_tasks
            for number, text in enumerate(instructions.bank(sub_task))
        }
        assert found.sentences[name] == expected
    assert found.kept == {}
    assert len(endpoint.bodies) == sum(len(of) for of in found.sentences.values())


def test_requests_hold_no_row_no_options_and_are_the_same_each_time(serve, tmp_path):
    endpoint = serve(reworded)
    made = recipe(tmp_path, endpoint.url, ("gestures", "emoji_pictures"), concurrency=7)
    rewriting.rewrite(made, str(tmp_path / "a"))
    first = sorted(map(json.dumps, endpoint.bodies))
    rewriting.rewrite(made, str(tmp_path / "b"))
    assert sorted(map(json.dumps, endpoint.bodies[len(first) :])) == first
    banked = {text for task in ("intent", "emo_c", "emo_o") for text in instructions.bank(task)}
    for path, body in endpoint.bodies:
        assert path == "/v1/chat/completions"
        assert (body["model"], body["temperature"], body["seed"]) == ("m", 0, 3)
        facts, _, sentence = body["messages"][-1]["content"].partition("\nInstruction: ")
        assert sentence in banked
        assert any(sources.adapter(name).TITLE in facts for name in ("gestures", "emoji_pictures"))
        assert "Authorization" not in endpoint.headers[0]


def test_a_second_build_needs_neither_endpoint_nor_key(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    endpoint = serve(reworded)
    made = recipe(tmp_path, endpoint.url, api_key_env="MY_KEY")
    first = rewriting.rewrite(made, str(tmp_path / "work"))
    endpoint.close()
    monkeypatch.delenv("MY_KEY")
    again = rewriting.rewrite(made, str(tmp_path / "work"))
    assert again == first and len(again.sentences["jokes"]) == len(instructions.bank("humor"))
    other = recipe(tmp_path, "http://127.0.0.1:9/other/address", cache=str(tmp_path / "work" / "rewriting"))
    assert rewriting.rewrite(other, str(tmp_path / "elsewhere")) == first


def test_the_key_goes_to_the_endpoint_and_nowhere_else(serve, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    endpoint = serve(reworded)
    made = recipe(tmp_path, endpoint.url, api_key_env="MY_KEY")
    rewriting.write_table(str(tmp_path / "out"), rewriting.rewrite(made, str(tmp_path / "out" / ".work")))
    assert {headers["Authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 1 + len(instructions.bank("humor"))
    captured = capfd.readouterr()
    for text in (*written, captured.out, captured.err, made.model_dump_json()):
        assert KEY not in text


def test_a_key_that_is_not_set_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UsageError, match="MY_KEY, which is not set"):
        rewriting.rewrite(recipe(tmp_path, "http://127.0.0.1:9", api_key_env="MY_KEY"), str(tmp_path))


@pytest.mark.parametrize(
    "where", ["rewriting.api_key_env=sk-pasted-by-mistake", "rewriting.base_url=http://me:sk-pasted@host/v1"]
)
def test_a_key_in_the_wrong_place_is_refused_without_being_shown(where):
    overrides = ["rewriting.base_url=http://localhost/v1", "rewriting.model=m", where]
    with pytest.raises(UsageError) as refused:
        load_recipe("smoke", overrides)
    assert "sk-pasted" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ('  ""  ', "empty"),
        ("Why?", "length"),
        ("word " * 30, "length"),
        ("a" * 200 + " b", "length"),
        ("Is it funny?\nYes", "lines"),
        ("Is <image> funny?", "marker"),
        ("Is it funny?<|im_end|>", "marker"),
        ("Is it funny? (A) Yes (B) No", "options"),
        ("Is it funny? Options: yes, no", "options"),
        ("Is it funny? A) yes B) no", "options"),
        ("It is funny, isn't it? Say yes.", "leak"),
        ("No joke, is it?", "leak"),
    ],
)
def test_an_answer_that_is_no_instruction_leaves_the_banks_sentence(serve, tmp_path, text, problem, capsys):
    bad = instructions.bank("humor")[4]
    endpoint = serve(lambda sentence: said(text) if sentence == bad else reworded(sentence))
    found = rewriting.rewrite(recipe(tmp_path, endpoint.url), str(tmp_path / "work"))
    assert found.kept == {"jokes": {"humor-04": problem}}
    assert "humor-04" not in found.sentences["jokes"]
    assert f"1 kept: {rewriting.PROBLEMS[problem]}" in capsys.readouterr().out


def test_naming_both_answers_gives_nothing_away_and_quotation_marks_go(serve, tmp_path):
    endpoint = serve(lambda sentence: said('  "Is this a joke? Reply Yes or No." '))
    found = rewriting.rewrite(recipe(tmp_path, endpoint.url), str(tmp_path / "work"))
    assert set(found.sentences["jokes"].values()) == {"Is this a joke? Reply Yes or No."}


@pytest.mark.parametrize(
    ("text", "problem"),
    [("Is this joy?", "leak"), ("What do you see in it?", "format"), ("One word: how is it felt?", "")],
)
def test_open_questions_name_no_emotion_and_keep_their_one_word(text, problem):
    row = rewriting.Row("emoji_pictures", "emo_o", "emo_o-00", "Name the emotion in one word.")
    assert rewriting.problem_of(row, text) == problem


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"broken"), (429, b"slow down"), (302, b""), (200, b"not json"), (200, b"{}"), (200, b'{"choices": []}'),
        (200, b'{"choices": [{"message": {"content": 7}}]}'), (200, b"[" * 100_000), (200, b" " * (3 << 20)), (200, b"\xff"),
    ],
)  # fmt: skip
def test_an_endpoint_that_fails_costs_a_few_requests_and_no_row(serve, tmp_path, capsys, status, body):
    endpoint = serve(lambda sentence: (status, body))
    made = recipe(tmp_path, endpoint.url, concurrency=2)
    found = rewriting.rewrite(made, str(tmp_path / "work"))
    assert found.sentences == {}
    assert set(found.kept["jokes"].values()) <= {"failed", "down"}
    assert len(found.kept["jokes"]) == len(instructions.bank("humor"))
    assert len(endpoint.bodies) <= 8
    assert storage.list_files(str(tmp_path / "work")) == []  # so that the next build asks again
    told = {200: "no chat completion|too long", 302: "HTTP status 302"}.get(status, f"HTTP status {status}")
    assert re.search(f"the endpoint's last failure was .*({told})", capsys.readouterr().err)


def test_a_hiccup_is_tried_again(serve, tmp_path):
    times: Counter[str] = Counter()

    def sometimes(sentence: str) -> tuple[int, bytes]:
        times[sentence] += 1
        return (503, b"") if times[sentence] == 1 else reworded(sentence)

    endpoint = serve(sometimes)
    found = rewriting.rewrite(recipe(tmp_path, endpoint.url, concurrency=1), str(tmp_path / "work"))
    assert len(found.sentences["jokes"]) == len(instructions.bank("humor"))


def test_nobody_listening_and_slow_answers_end_within_the_time_limit(serve, tmp_path):
    def slow(sentence: str) -> tuple[int, bytes]:
        time.sleep(1.5)
        return reworded(sentence)

    for url in (serve(slow).url, "http://127.0.0.1:9/v1"):
        started = time.monotonic()
        found = rewriting.rewrite(recipe(tmp_path, url, timeout_s=0.1, concurrency=4), str(tmp_path / "w"))
        assert time.monotonic() - started < 3
        assert found.sentences == {} and len(found.kept["jokes"]) == len(instructions.bank("humor"))


def test_at_most_max_rows_sentences_are_sent(serve, tmp_path):
    endpoint = serve(reworded)
    found = rewriting.rewrite(recipe(tmp_path, endpoint.url, max_rows=5), str(tmp_path / "work"))
    assert len(endpoint.bodies) == len(found.sentences["jokes"]) == 5
    assert Counter(found.kept["jokes"].values()) == {"over_max_rows": len(instructions.bank("humor")) - 5}


def test_a_broken_cache_file_is_asked_for_again(serve, tmp_path):
    endpoint = serve(reworded)
    made = recipe(tmp_path, endpoint.url)
    first = rewriting.rewrite(made, str(tmp_path / "work"))
    paths = sorted((tmp_path / "work" / "rewriting").iterdir())
    paths[0].write_text("{")
    paths[1].write_text("[1]")
    before = len(endpoint.bodies)
    assert rewriting.rewrite(made, str(tmp_path / "work")) == first
    assert len(endpoint.bodies) == before + 2


# --- what a row makes of it ------------------------------------------------------------------------------------------


def ask(
    sentence: str, label: str, options: tuple[str, ...], sub_task: str, uid: str = "s/all/1"
) -> instructions.Asked:
    one = Record(
        uid, "s", sub_task, None, (MediaRef("image", "a.png"),), label, label, "MIT", options, text="A text"
    )
    plain = instructions.ask(one, ["image"])
    how = instructions.Wording(sentences={plain.template_id: sentence})
    return instructions.ask(one, ["image"], how)


def test_a_row_takes_the_sentence_and_keeps_everything_else():
    one = ask("Please choose.", "joy", EMOJI_FEELINGS, "emo_c")
    bank = ask("", "joy", EMOJI_FEELINGS, "emo_c")
    assert one.content.split("\n") == ["Please choose.", *bank.content.split("\n")[1:]]
    assert one.options == bank.options
    template, _, digest = one.template_id.partition("~")
    assert template == bank.template_id and len(digest) == 8


@pytest.mark.parametrize(
    ("sentence", "label", "options", "sub_task", "taken"),
    [
        ("Do they agree here?", "Agree", ("Agree", "Doubt"), "intent", False),
        ("Do they agree here?", "Doubt", ("Agree", "Doubt"), "intent", False),
        ("Do they agree here?", "Inform", ("Inform", "Doubt"), "intent", True),
        ("Do they agree or doubt?", "Doubt", ("Agree", "Doubt"), "intent", True),
        ("Is it disagreement?", "Agree", ("Agree", "Doubt"), "intent", True),
        ("Is this joy? One word.", "joy", (), "emo_o", False),
        ("Is this love? One word.", "joy", (), "emo_o", True),
        ("Funny? Say yes.", "No", YES_NO, "humor", False),
    ],
)
def test_a_row_whose_answer_the_sentence_names_is_asked_with_the_banks(
    sentence, label, options, sub_task, taken
):
    asked = ask(sentence, label, options, sub_task)
    assert asked.content.startswith(sentence) == taken
    assert ("~" in asked.template_id) == taken
    if not taken:
        assert asked.content.split("\n")[0] in instructions.bank(sub_task)


# --- a whole build ---------------------------------------------------------------------------------------------------


def test_a_build_with_rewriting_repeats_without_the_endpoint_and_changes_nothing_else(serve, tmp_path, capfd):
    import pyarrow.parquet as pq

    from dataset_build import manifest
    from tests.fixtures import plain_build
    from tests.fixtures.emoji_tree import write_emoji_tree

    write_emoji_tree(tmp_path / "tree", emoji_per_feeling=1, clips=0, texts_per_kind=12)
    endpoint = serve(lambda sentence: said("Say yes.") if "joke" in sentence else reworded(sentence))

    def make(name: str, **section) -> tuple[dict, dict[str, dict]]:
        raw = {
            "name": "r", "out": str(tmp_path / name), "root": str(tmp_path / "tree"), "seed": 3,
            "sources": [{"name": "jokes", "root": "texts", "options": {"per_label": 10}}], **section,
        }  # fmt: skip
        done = plain_build.build(BuildRecipe.model_validate(raw))
        rows = [
            row
            for path in sorted((tmp_path / name).glob("*/*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        return done, {row["uid"]: row for row in rows}

    section = {"base_url": endpoint.url, "model": "m", "cache": str(tmp_path / "cache")}
    first, rewritten = make("first", rewriting=section)
    endpoint.close()
    second, _ = make("second", rewriting=section)
    assert second["digest"] == first["digest"] and first["files"]["rewriting.json"]["rows"] > 0
    assert "kept: the sentence names an answer" in capfd.readouterr().out
    _, plain = make("plain")
    assert set(plain) == set(rewritten) and len(plain) == 20
    changed = 0
    for uid, row in rewritten.items():
        before = plain[uid]
        own, bank = row["messages"][0]["content"].split("\n"), before["messages"][0]["content"].split("\n")
        assert (
            own[1:] == bank[1:] and row["options"] == before["options"] and row["answer"] == before["answer"]
        )
        kept = "joke" in bank[0]
        assert own[0] == (bank[0] if kept else f"Please: {bank[0]}")
        assert ("~" in row["provenance"]["template_id"]) != kept
        changed += not kept
    assert 0 < changed < 20
    assert manifest.verify(str(tmp_path / "first"), deep=True) == []
    assert "language model `m`" in (tmp_path / "first" / "README.md").read_text()
