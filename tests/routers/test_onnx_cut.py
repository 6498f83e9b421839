"""A graph cut with no ONNX library is what ONNX itself would call the beginning of that graph."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from routers.onnx_cut import cut


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """y = (2x + 1) · 5 with the inner value named `/inner/sum`, each weight large enough for a long length prefix."""
    weights = {"two": 2.0, "one": 1.0, "five": 5.0}
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "one"], ["/inner/sum"]),
        helper.make_node("Mul", ["/inner/sum", "five"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 500])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 500])],
        [numpy_helper.from_array(np.full(500, value, dtype=np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_the_cut_graph_gives_the_inner_value_and_nothing_else(model: onnx.ModelProto) -> None:
    beginning = cut(model.SerializeToString(), "/inner/sum")
    given = np.arange(1000, dtype=np.float32).reshape(2, 500)
    session = ort.InferenceSession(beginning)
    assert [each.name for each in session.get_outputs()] == ["/inner/sum"]
    assert np.array_equal(session.run(None, {"x": given})[0], 2 * given + 1)


def test_what_lies_behind_the_cut_is_gone_and_the_rest_is_as_it_was(model: onnx.ModelProto) -> None:
    beginning = onnx.load_from_string(cut(model.SerializeToString(), "doubled"))
    assert [node.output[0] for node in beginning.graph.node] == ["doubled"]
    assert [weight.name for weight in beginning.graph.initializer] == ["two"]
    assert beginning.opset_import[0].version == 17


def test_cutting_at_the_end_changes_nothing_that_is_computed(model: onnx.ModelProto) -> None:
    given = np.ones((1, 500), dtype=np.float32)
    session = ort.InferenceSession(cut(model.SerializeToString(), "y"))
    assert np.array_equal(session.run(None, {"x": given})[0], given * 15)


def test_an_unknown_value_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(ValueError, match="nothing-like-it"):
        cut(model.SerializeToString(), "nothing-like-it")


def test_damaged_files_are_refused_and_never_loop(model: onnx.ModelProto) -> None:
    whole = model.SerializeToString()
    for length in range(0, len(whole) - 1, 97):
        with pytest.raises(ValueError, match=r"cut short|gives no|no graph"):
            cut(whole[:length], "/inner/sum")
    random = np.random.default_rng(0)
    for _ in range(200):
        try:
            cut(random.bytes(300), "/inner/sum")
        except ValueError:
            continue
