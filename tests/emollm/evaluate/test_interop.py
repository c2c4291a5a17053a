"""Results in the harnesses' layout, and the tasks that lmms-eval runs.

lmms-eval itself is no dependency (it brings its own torch). docs/evaluation.md says how the tasks were run under it; here its
part is played by what it does with a task: `datasets` reads the files as the YAML says, the functions that the YAML names are
called on each row, and their results averaged.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from emollm.evaluate import interop, parse
from emollm.evaluate.protocol import EvaluationError
from tests.emollm.evaluate import synthetic
from tests.emollm.evaluate.emobench import make_rows

ROWS = synthetic.rows(40)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Path], dict[str, Any]]:
    """(results.json of the run, exported files, exported results)"""
    folder = tmp_path_factory.mktemp("exported")
    run = synthetic.write_run(folder / "run", ROWS, 0.6, name="org/model: 7B")
    paths = [Path(path) for path in interop.export(str(run), str(folder / "out"))]
    return json.loads((run / "results.json").read_text()), paths, json.loads(paths[0].read_text())


def test_files_lie_and_are_named_as_the_harness_does(exported: tuple[Any, list[Path], Any]) -> None:
    _, paths, _ = exported
    assert {path.parent.name for path in paths} == {"org__model__ 7B"}
    assert [path.name.partition("_1970")[0] for path in paths] == [
        "results", "samples_emobench_emo_c", "samples_emobench_emo_o", "samples_emobench_intent", "samples_emobench_sarcasm",
    ]  # fmt: skip


def test_scores_are_those_of_the_run_under_the_harness_s_names(exported: tuple[Any, Any, Any]) -> None:
    ours, _, theirs = exported
    for name, entry in ours["sub_tasks"].items():
        if not entry["n"]:
            assert f"emobench_{name}" not in theirs["results"]
            continue
        scores = theirs["results"][f"emobench_{name}"]
        assert scores["acc,none"] == entry["accuracy"] and scores["f1_macro,none"] == entry["macro_f1"]
        low, high = entry["ci95"]
        assert scores["acc_stderr,none"] == pytest.approx((high - low) / 2 / 1.959964, abs=1e-6)
        assert theirs["n-samples"][f"emobench_{name}"] == {"original": entry["n"], "effective": entry["n"]}
    assert theirs["groups"]["emobench"]["acc,none"] == ours["overall"]["accuracy"]
    assert theirs["group_subtasks"]["emobench"] == [
        f"emobench_{name}" for name in ours["overall"]["sub_tasks"]
    ]
    for table in ("versions", "n-shot", "higher_is_better"):
        assert set(theirs[table]) == set(theirs["results"])


def test_samples_files_hold_every_sample_once(exported: tuple[Any, list[Path], Any]) -> None:
    _, paths, theirs = exported
    for path in paths[1:]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        task = path.name.removeprefix("samples_").partition("_1970")[0]
        assert [line["doc_id"] for line in lines] == list(range(10))
        assert sum(line["acc"] for line in lines) / 10 == theirs["results"][task]["acc,none"]
        for line in lines:
            assert len(line["resps"]) == len(line["arguments"]) == len(line["doc"]["options"] or [1])
            assert line["target"] in line["doc"]["gold_answers"] and len(line["doc_hash"]) == 64


def test_the_same_run_gives_the_same_files(exported: tuple[Any, list[Path], Any], tmp_path: Path) -> None:
    run = synthetic.write_run(tmp_path / "run", ROWS, 0.6, name="org/model: 7B")
    again = [Path(path) for path in interop.export(str(run), str(tmp_path / "out"))]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in exported[1]]


# --- tasks of lmms-eval ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    assert interop.write_tasks(str(bench), str(folder)) == ["emo_c", "emo_o", "intent", "humor"]
    return folder


def loaded(folder: Path, name: str) -> dict[str, Any]:
    """A YAML as lmms-eval loads it: `include` below its own keys, `!function module.name` as the thing itself."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: Any) -> Any:
        module_name, _, attribute = loader.construct_scalar(node).partition(".")
        spec = importlib.util.spec_from_file_location(module_name, folder / f"{module_name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, attribute)

    Loader.add_constructor("!function", function)
    config: dict[str, Any] = yaml.load((folder / name).read_text(), Loader)  # noqa: S506 (a SafeLoader)
    return {**(loaded(folder, config.pop("include")) if "include" in config else {}), **config}


def documents(task: dict[str, Any], cache: Path) -> Any:
    import datasets

    read = datasets.load_dataset(task["dataset_path"], cache_dir=str(cache), **task["dataset_kwargs"])
    return task["process_docs"](read[task["test_split"]])


def scores_of(task: dict[str, Any], docs: Any, answer: Any) -> dict[str, float]:
    per_doc = [task["process_results"](doc, [answer(doc)]) for doc in docs]
    return {
        m["metric"]: m["aggregation"]([scores[m["metric"]] for scores in per_doc])
        for m in task["metric_list"]
    }


def test_group_is_the_mean_of_what_counts(tasks: Path) -> None:
    group = loaded(tasks, "emobench.yaml")
    assert group["task"] == [
        "emobench_emo_c",
        "emobench_emo_o",
        "emobench_intent",
    ]  # humor: demonstrations alone
    assert group["aggregate_metric_list"] == [
        {"metric": "acc", "aggregation": "mean", "weight_by_size": False}
    ]


@pytest.mark.parametrize("name", ["emo_c", "emo_o", "intent", "humor"])
def test_each_task_reads_its_rows_and_scores_them_as_we_do(
    tasks: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    task = loaded(tasks, f"emobench_{name}.yaml")
    assert task["task"] == f"emobench_{name}" and task["output_type"] == "generate_until"
    docs = documents(task, tmp_path)
    rows = {row["uid"]: row for row in make_rows() if row["split"] == "test" and row["sub_task"] == name}
    assert sorted(doc["uid"] for doc in docs) == sorted(rows)
    for doc in docs:
        question = task["doc_to_text"](doc, task["lmms_eval_specific_kwargs"]["default"])
        assert "<image>" not in question and "<video>" not in question and question.strip() == question
        pictures = task["doc_to_visual"](doc)
        assert len(pictures) == len(rows[doc["uid"]]["media"][0]["data"]) and pictures[0].mode == "RGB"
    assert scores_of(task, docs, task["doc_to_target"])["acc"] == 1.0
    silent = scores_of(task, docs, lambda doc: "")
    assert silent["acc"] == 0.0 and silent["invalid"] == 1.0
    if name != "emo_o":
        first = sum(row["options"][0] == row["answer"] for row in rows.values()) / len(rows)
        assert scores_of(task, docs, lambda doc: "(A)")["acc"] == pytest.approx(first)
        choices = [parse.read_choice("(A)", doc["options"]).choice for doc in docs]
        assert choices == [0] * len(docs)
    else:
        assert scores_of(task, docs, lambda doc: "happiness")["acc"] == sum(
            r["answer"] == "joy" for r in rows.values()
        ) / len(rows)


def test_data_without_a_test_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"train/a-00000.parquet": {}}}))
    with pytest.raises(EvaluationError, match="no file in test/"):
        interop.write_tasks(str(tmp_path), str(tmp_path / "out"))
