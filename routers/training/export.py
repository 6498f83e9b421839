"""Trained weights to ONNX, written by hand: a handful of nodes whose names are those of the paper."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
Floats = NDArray[np.float32]


def write_mf(
    path: Path,
    *,
    projection: Floats,
    models: Floats,
    direction: Floats,
    strong: int,
    weak: int,
    mean: Floats,
    typical_length: float,
    length_span: tuple[float, float],
    calibration: tuple[float, float],
    metadata: Mapping[str, str],
) -> None:
    """Write the router's graph: vectors (n, d) and logarithmic lengths (n, 1) to win rates (n,).

    `mean` has shape (d,), `projection` (2 d + 1, rank), `models` (models, rank) with unit rows, `direction` (rank,).
    """
    weights: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "mean": mean,
        "typical_length": np.array(typical_length, dtype=np.float32),
        "shortest": np.array(length_span[0], dtype=np.float32),
        "longest": np.array(length_span[1], dtype=np.float32),
        "projection": projection,
        "models": models,
        "direction": direction[:, None],
        "strong": np.array(strong, dtype=np.int64),
        "weak": np.array(weak, dtype=np.int64),
        "slope": np.array(calibration[0], dtype=np.float32),
        "intercept": np.array(calibration[1], dtype=np.float32),
        "last_axis": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Sub", ["embedding", "mean"], ["centred"]),
        helper.make_node("Sub", ["log_length", "typical_length"], ["relative"]),
        helper.make_node("Clip", ["relative", "shortest", "longest"], ["length"]),
        helper.make_node("Mul", ["centred", "length"], ["product"]),
        helper.make_node("Concat", ["centred", "length", "product"], ["inputs"], axis=1),
        helper.make_node("MatMul", ["inputs", "projection"], ["projected"]),
        helper.make_node("Gather", ["models", "strong"], ["strong_model"]),
        helper.make_node("Gather", ["models", "weak"], ["weak_model"]),
        helper.make_node("Sub", ["strong_model", "weak_model"], ["model_difference"]),
        helper.make_node("Mul", ["projected", "model_difference"], ["interaction"]),
        helper.make_node("MatMul", ["interaction", "direction"], ["lead"]),
        helper.make_node("Mul", ["lead", "slope"], ["sloped"]),
        helper.make_node("Add", ["sloped", "intercept"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["win_rates"]),
        helper.make_node("Squeeze", ["win_rates", "last_axis"], ["win_rate"]),
    ]
    inputs = {"embedding": len(mean), "log_length": 1}
    _write(path, "mf", nodes, weights, inputs, metadata)


def write_second_look(
    path: Path, *, hidden: Floats, plain: Floats, intercept: float, strong: float, metadata: Mapping[str, str]
) -> None:
    """Write the graph from a first score (n, 1), signals (n, k) and hidden states (n, d) to win rates (n,).

    `hidden` has shape (d,), without the input where d is 0; `plain` (1 + k,) weighs the first score's logit and the
    signals. Their sum and `intercept` are the logit that the weak model is right; a strong one is with the chance
    `strong`, and where both or neither is, each is preferred as often.
    """
    weights: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "one": np.array(1, dtype=np.float32),
        "least": np.array(1e-4, dtype=np.float32),
        "most": np.array(1 - 1e-4, dtype=np.float32),
        "plain": plain[:, None],
        "intercept": np.array(intercept, dtype=np.float32),
        "half": np.array(0.5, dtype=np.float32),
        "most_preferred": np.array(0.5 + strong / 2, dtype=np.float32),
        "last_axis": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Clip", ["first_score", "least", "most"], ["chance"]),
        helper.make_node("Sub", ["one", "chance"], ["rest"]),
        helper.make_node("Div", ["chance", "rest"], ["odds"]),
        helper.make_node("Log", ["odds"], ["first_logit"]),
        helper.make_node("Concat", ["first_logit", "signals"], ["inputs"], axis=1),
        helper.make_node("MatMul", ["inputs", "plain"], ["plain_part"]),
        helper.make_node("Add", ["plain_part", "intercept"], ["without_hidden"]),
    ]
    inputs = {"first_score": 1, "signals": len(plain) - 1}
    logit = "without_hidden"
    if len(hidden):
        inputs["hidden"], logit = len(hidden), "logit"
        weights["direction"] = hidden[:, None]
        nodes += [
            helper.make_node("MatMul", ["hidden", "direction"], ["hidden_part"]),
            helper.make_node("Add", ["without_hidden", "hidden_part"], ["logit"]),
        ]
    nodes += [
        helper.make_node("Sigmoid", [logit], ["right"]),
        helper.make_node("Mul", ["right", "half"], ["taken"]),
        helper.make_node("Sub", ["most_preferred", "taken"], ["win_rates"]),
        helper.make_node("Squeeze", ["win_rates", "last_axis"], ["win_rate"]),
    ]
    _write(path, "second_look", nodes, weights, inputs, metadata)


def _write(
    path: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, NDArray[np.float32] | NDArray[np.int64]],
    inputs: Mapping[str, int],
    metadata: Mapping[str, str],
) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, ["n", size]) for key, size in inputs.items()],
        [helper.make_tensor_value_info("win_rate", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.ascontiguousarray(value), key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="upcall")
    model.ir_version = 9
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
