"""`emollm serve`: the answers of the model itself, over HTTP; mistakes come back as messages, never as a crash."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emollm.config import EvaluateRecipe
from emollm.evaluate import run
from emollm.evaluate.recipe import EndpointConfig
from emollm.evaluate.results import evaluate
from emollm.serve import Server, make_server
from tests.emollm.evaluate.conftest import in_this_process
from tests.emollm.evaluate.emobench import face
from tests.fixtures import tiny_processors


@contextmanager
def serving(model: str) -> Iterator[Server]:
    server = make_server(model)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def own(model_dir: Path) -> Iterator[Server]:
    with serving(str(model_dir / "fold-0")) as server:
        yield server


def post(server: Server, body: Any, path: str = "/chat/completions", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        server.url + path, data, {"Content-Type": "application/json", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def picture_part(data: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def ask(*parts: dict[str, Any], **settings: Any) -> dict[str, Any]:
    content = list(parts) or [{"type": "text", "text": "What is it?\n"}, picture_part(face("joy", 3))]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **settings}


def generated(model: str, bench: Path, out: Path, **settings: Any) -> list[tuple[str, str, str, str]]:
    recipe = EvaluateRecipe(
        mode="generate", baselines=(), linear_probe=False, nearest_neighbour=False, max_new_tokens=8,
        bootstrap={"samples": 100}, **settings,
    )  # fmt: skip
    evaluate(model, str(bench), str(out), recipe)
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    return [(row["uid"], row["generated"], row["answer"], row["status"]) for row in rows]


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_a_model_says_the_same_through_the_server_as_directly(
    kind: str, bench: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of the protocol; a foreign model also sees clips, as so many pictures either way."""
    monkeypatch.setattr(run, "_on_ray", in_this_process)
    if kind == "own":
        model, sub_tasks = str(model_dir / "fold-0"), ("emo_o", "intent", "humor")
    else:
        model, sub_tasks = f"hf:{tiny_processors.write('smolvlm', tmp_path / 'smolvlm')}", ("emo_c", "intent")
    limit = {"sub_tasks": sub_tasks, "limit": 12}
    directly = generated(model, bench, tmp_path / "direct", **limit)
    with serving(model) as server:
        point = EndpointConfig(url=server.url, concurrency=3)
        served = generated(f"openai:{server.name}", bench, tmp_path / "served", **limit, endpoint=point)
    if kind == "own":  # a fold answers its own test rows, an endpoint's model those of every fold
        assert len(directly) > 20
        served = [row for row in served if row[0] in {uid for uid, *_ in directly}]
        shared = {uid for uid, *_ in served}
        directly = [row for row in directly if row[0] in shared]
        assert len(directly) >= 20
    assert directly == served and len({said for _, said, *_ in directly}) > 1


def test_a_completion_has_the_form_that_clients_expect(own: Server) -> None:
    status, body = post(own, ask(model="fold-0", temperature=0, seed=1))
    assert status == 200 and body["object"] == "chat.completion" and body["model"] == "fold-0"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant" and isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] in ("stop", "length")
    assert body["usage"]["completion_tokens"] <= 4 and body["usage"]["prompt_tokens"] > 4
    assert post(own, ask(model="fold-0", temperature=0, seed=1))[1]["choices"] == body["choices"]
    with urllib.request.urlopen(own.url + "/models") as response:
        assert [model["id"] for model in json.load(response)["data"]] == ["fold-0"]


def test_the_picture_is_seen(own: Server) -> None:
    replies = {
        post(own, ask({"type": "text", "text": "Name the feeling.\n"}, picture_part(face(label, 1)), max_tokens=12))[1][
            "choices"
        ][0]["message"]["content"]
        for label in ("joy", "sadness", "anger", "fear", "love")
    }  # fmt: skip
    assert len(replies) > 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        ([], 400, "no JSON object"),
        ({}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
        (ask(temperature=0.7), 400, "temperature must be 0"),
        (ask(stream=True), 400, "stream"),
        (ask(n=2), 400, "n must be 1"),
        (ask(max_tokens=10**9), 400, "max_tokens"),
        (ask(model="gpt"), 404, "'fold-0' is"),
        (ask(sub_task="emo_x"), 400, "sub_task"),
        (ask({"type": "text", "text": "see <image>"}), 400, "the text holds <image>"),
        (ask({"type": "input_audio"}), 400, "messages[0].content[0]"),
        (ask({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}), 400, "fetches nothing"),
        (ask({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), 400, "fetches nothing"),
        (ask({"type": "image_url", "image_url": "data:image/png;base64,%%%"}), 400, "not a picture"),
        (ask(picture_part(b"GIF89a broken")), 400, "not a picture"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_is_explained(
    own: Server, body: Any, status: int, said: str
) -> None:
    got, answer = post(own, body)
    assert got == status and said in answer["error"]["message"]


def test_other_paths_types_and_sizes_are_refused_and_the_server_lives(own: Server) -> None:
    assert post(own, ask(), path="/completions")[0] == 404
    assert post(own, ask(), **{"Content-Type": "text/plain"})[0] == 415
    assert post(own, ask())[0] == 200


def test_a_folder_of_folds_and_a_used_port_are_named(model_dir: Path, own: Server) -> None:
    with pytest.raises(ValueError, match="one model per fold; serve one, for example .*fold-0"):
        make_server(str(model_dir))
    with pytest.raises(ValueError, match="--port"):
        make_server(str(model_dir / "fold-0"), port=own.server_address[1])
