"""Other wordings of the instruction bank, by a language model behind an OpenAI-compatible endpoint. Off by default.

What is rewritten is the bank, once per source: each paraphrase that a source may use becomes one that fits its kind of
data, and rows draw from the rewritten bank by the hash of their uid, as they draw from the bank itself. So a few
hundred short requests do for any number of rows, conversion stays a function of its inputs, and every sentence that
is used can be read in OUT/rewriting.json.

The endpoint sees the bank's sentence and the source's title: no row, no option, no answer, no medium. What it returns
is checked here (`problem_of`), and once more for each row against the row's own options (`instructions.names_answer`);
what does not pass leaves the bank's sentence in place. Responses are kept as JSON files under the digest of (model,
request), so that a second build needs no endpoint and gives the same digest. A request that failed is not kept: it is
sent again by the next build that has something to do.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build import instructions, labels, provenance, sources, storage, write
from dataset_build.chat import ChatClient, ChatError
from dataset_build.errors import UsageError
from dataset_build.instructions.chat_markers import plain
from dataset_build.progress import Progress

if TYPE_CHECKING:
    from dataset_build.recipe import BuildRecipe, RewritingSettings

MAX_WORDS, MAX_CHARS = 20, 120
_TRIES = 3
# After so many failed requests in a row the endpoint counts as down, and nothing more is sent.
_DOWN_AFTER = 2
_SYSTEM = (
    "You reword the instruction of a benchmark question. Reply with the new instruction alone: one plain sentence of at "
    "most 15 words that asks for exactly the same thing. Add no answer options, examples or explanations, and do not "
    "answer it."
)
# Why a sentence of the bank stays as it is.
PROBLEMS = {
    "empty": "the answer is empty",
    "length": f"not 2 to {MAX_WORDS} words in at most {MAX_CHARS} characters",
    "lines": "more than one line",
    "marker": "a placeholder or chat marker",
    "options": "answer options in the sentence",
    "leak": "the sentence names an answer",
    "format": "the bank asks for one word, the answer does not",
    "failed": "the endpoint gave no usable response",
    "down": "the endpoint had failed several times in a row",
    "over_max_rows": "beyond the recipe's rewriting.max_rows",
}


class Rewritten(NamedTuple):
    """`sentences`: source → template id → new sentence. `kept`: source → template id → key of `PROBLEMS`."""

    sentences: dict[str, dict[str, str]]
    kept: dict[str, dict[str, str]]
    model: str = ""


class Row(NamedTuple):
    """One row of the table: a sentence of the bank as one source asks it."""

    source: str
    sub_task: str
    template_id: str
    sentence: str


def rewrite(recipe: BuildRecipe, work: str) -> Rewritten:
    """The rewritten banks of all sources; nothing where the recipe has no section `rewriting`.

    Raises UsageError where a request has to be sent and the key's environment variable is not set.
    """
    settings = recipe.rewriting
    if settings is None:
        return Rewritten({}, {})
    rows = list(table(recipe))
    answers = _answers(settings, rows, recipe.seed, settings.cache or storage.join(work, "rewriting"))
    found = Rewritten({}, {}, settings.model)
    for row, answer in zip(rows, answers):
        reason = answer.problem or problem_of(row, answer.text)
        side, value = (found.kept, reason) if reason else (found.sentences, answer.text)
        side.setdefault(row.source, {})[row.template_id] = value
    print(_summary(found, len(rows)), flush=True)
    return found


def write_table(out: str, rewritten: Rewritten) -> dict[str, Any]:
    """OUT/rewriting.json and its manifest entry; an earlier build's file goes where nothing was rewritten."""
    path = storage.join(out, "rewriting.json")
    if not rewritten.model:
        storage.remove(path)
        return {}
    storage.write_json(path, {**rewritten._asdict(), "meaning": PROBLEMS})
    n_rows = sum(len(of_source) for of_source in rewritten.sentences.values())
    return {"rewriting.json": write.entry(storage.read_bytes(path), n_rows)}


def table(recipe: BuildRecipe) -> Iterator[Row]:
    """All sentences that the recipe's sources may ask, source by source: the order in the recipe changes nothing."""
    for spec in sorted(recipe.sources, key=lambda spec: spec.name):
        adapter = sources.adapter(spec.name)
        asked = getattr(recipe.source_options(spec), "ask", "")
        only = {"closed": "emo_c", "open": "emo_o"}.get(asked)
        for sub_task in adapter.SUB_TASKS:
            if only and sub_task in ("emo_c", "emo_o") and sub_task != only:
                continue
            for variant in instructions.variants(sub_task, adapter):
                for number, sentence in enumerate(instructions.bank(sub_task, variant)):
                    name = instructions.template_name(sub_task, variant, number)
                    yield Row(spec.name, sub_task, name, sentence)


def problem_of(row: Row, text: str) -> str:
    """What is wrong with a rewritten sentence, as a key of `PROBLEMS`; "" if nothing is."""
    if not text:
        return "empty"
    if "\n" in text or "\r" in text:
        return "lines"
    if len(text) > MAX_CHARS or not 2 <= len(text.split()) <= MAX_WORDS:
        return "length"
    if plain(text) != text:
        return "marker"
    if re.search(r"\([A-Z]\)|\b[A-Z][).] |\b[Oo]ptions?:", text):
        return "options"
    known = labels.EMOTIONS if row.sub_task in ("emo_c", "emo_o") else labels.YES_NO
    if row.sub_task != "intent" and instructions.names_answer(text, tuple(known), ()):
        return "leak"
    if row.sub_task == "emo_o" and "word" in row.sentence.lower() and "word" not in text.lower():
        return "format"
    return ""


def request(row: Row, model: str, seed: int) -> dict[str, Any]:
    """The body of the chat completion request for a row: nothing in it depends on time or place."""
    title = sources.adapter(row.source).TITLE
    user = f"The question comes with data of this kind: {title}.\nInstruction: {row.sentence}"
    turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]
    return {"model": model, "messages": turns, "temperature": 0, "seed": seed, "max_tokens": 64}


# --- the endpoint ----------------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """What came back: a cleaned text, or why there is none."""

    text: str
    problem: str = ""


class _Endpoint:
    """Sends requests from several threads; stops for good when the endpoint seems to be down."""

    def __init__(self, client: ChatClient) -> None:
        self.client = client
        self.trouble = ""  # what the last failure was, for the log
        self._failed_in_a_row = 0
        self._lock = threading.Lock()

    def ask(self, body: dict[str, Any]) -> _Answer:
        if self.client.stopped:
            return _Answer("", "down")
        try:
            text = self.client.ask(body).text
        except ChatError as error:
            with self._lock:
                self._failed_in_a_row += 1
                down = self._failed_in_a_row >= _DOWN_AFTER
            if not self.client.stopped:
                self.trouble = error.kind
            if down:
                self.client.stop()
            return _Answer("", "failed")
        with self._lock:
            self._failed_in_a_row = 0
        return _Answer(text)


def _cleaned(text: str) -> str:
    """Without the white space and quotation marks that models put around a sentence."""
    return text.strip().strip("\"“”'").strip()


def _answers(settings: RewritingSettings, rows: Sequence[Row], seed: int, cache: str) -> list[_Answer]:
    """One answer a row, in order, from the cache where it has it."""
    requests = [request(row, settings.model, seed) for row in rows]
    names = [f"{provenance.sha256_of_json([settings.model, body])}.json" for body in requests]
    cached = set(storage.list_files(cache))
    found: dict[int, _Answer] = {}
    for place, name in enumerate(names):
        text = _from_cache(storage.join(cache, name)) if name in cached else None
        if text is not None:
            found[place] = _Answer(_cleaned(text))
        elif place >= settings.max_rows:
            found[place] = _Answer("", "over_max_rows")
    to_send = [place for place in range(len(rows)) if place not in found]
    if to_send:
        _fetch(settings, to_send, requests, [storage.join(cache, name) for name in names], found)
    return [found[place] for place in range(len(rows))]


def _from_cache(path: str) -> str | None:
    try:
        content = storage.read_json(path)
    except ValueError:  # half a file of somebody else's making: ask again
        return None
    text = content.get("text") if isinstance(content, dict) else None
    return text if isinstance(text, str) else None


def _fetch(
    settings: RewritingSettings,
    places: Sequence[int],
    requests: Sequence[dict[str, Any]],
    paths: Sequence[str],
    found: dict[int, _Answer],
) -> None:
    """Ask for the rows at `places`, keep the responses in the cache, and put the answers into `found`."""
    key = _key(settings) if settings.api_key_env else ""
    try:
        client = ChatClient(
            settings.base_url,
            key,
            key_name=settings.api_key_env or "",
            timeout_s=settings.timeout_s,
            tries=_TRIES,
            connections=settings.concurrency,
        )
    except ValueError as error:
        raise UsageError(f"rewriting: {error}") from error
    with (
        client,
        ThreadPoolExecutor(settings.concurrency) as pool,
        Progress("rewriting", len(places), "instructions") as progress,
    ):
        endpoint = _Endpoint(client)
        try:
            for place, answer in zip(places, pool.map(lambda p: endpoint.ask(requests[p]), places)):
                if not answer.problem:
                    storage.write_json(paths[place], {"request": requests[place], "text": answer.text})
                found[place] = answer._replace(text=_cleaned(answer.text))
                progress.advance()
            if endpoint.trouble:
                print(f"rewriting: the endpoint's last failure was {endpoint.trouble}", file=sys.stderr)
        except BaseException:  # Ctrl-C: what is waiting is not sent any more
            client.stop()
            raise


def _key(settings: RewritingSettings) -> str:
    assert settings.api_key_env is not None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise UsageError(
            f"rewriting.api_key_env names {settings.api_key_env}, which is not set in the environment; set it, or leave "
            "rewriting out"
        )
    return key


def _summary(found: Rewritten, total: int) -> str:
    done = sum(len(of_source) for of_source in found.sentences.values())
    kept = Counter(reason for of_source in found.kept.values() for reason in of_source.values())
    why = "".join(f"; {count} kept: {PROBLEMS[reason]}" for reason, count in sorted(kept.items()))
    return f"rewriting: {done} of {total} instructions reworded by {found.model}{why}"
