"""The converted vision tower computes what the packaged graph computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.samples import ARCHIVES, _only_member

DOWNLOAD = Path(".local/downloads") / ARCHIVES["dinov2"].file
TOWER = Path(".local/models/dinov2-small")


@pytest.mark.slow
@pytest.mark.skipif(not (DOWNLOAD.exists() and TOWER.exists()), reason="run `make samples` first")
def test_converted_dinov2_equals_the_onnx_graph() -> None:
    import numpy as np
    import onnx
    import torch
    from onnx.reference import ReferenceEvaluator
    from transformers import Dinov2Model

    model = onnx.load_from_string(_only_member([DOWNLOAD], ".onnx"))
    graph = model.graph
    (last,) = [node.output[0] for node in graph.node if node.name == "/backbone/layernorm/Add_1"]
    wanted, kept = {last}, []
    for node in reversed(graph.node):  # the backbone alone: what `last` needs
        if set(node.output) & wanted:
            kept.append(node)
            wanted |= set(node.input)
    graph.ClearField("node")
    graph.node.extend(reversed(kept))
    graph.ClearField("output")
    graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))

    pixels_NCHW = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (expected_NTD,) = ReferenceEvaluator(model).run(None, {"input_image": pixels_NCHW})
    with torch.no_grad():
        found_NTD = Dinov2Model.from_pretrained(TOWER).eval()(torch.from_numpy(pixels_NCHW)).last_hidden_state
    # 256 patches of a 37×37 position grid resized to 16×16: the two resizes agree to a few float32 ulps.
    assert np.abs(found_NTD.numpy() - expected_NTD).max() < 5e-5
