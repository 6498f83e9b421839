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
    length_mean: float,
    length_scale: float,
    calibration: tuple[float, float],
    metadata: Mapping[str, str],
) -> None:
    """Write the router's graph: vectors (n, d) and logarithmic lengths (n, 1) to win rates (n,).

    `projection` has shape (d, rank), `models` (models, rank) with unit rows, `direction` (rank,).
    """
    weights: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "length_mean": np.array(length_mean, dtype=np.float32),
        "length_scale": np.array(length_scale, dtype=np.float32),
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
        helper.make_node("MatMul", ["embedding", "projection"], ["projected"]),
        helper.make_node("Gather", ["models", "strong"], ["strong_model"]),
        helper.make_node("Gather", ["models", "weak"], ["weak_model"]),
        helper.make_node("Sub", ["strong_model", "weak_model"], ["model_difference"]),
        helper.make_node("Mul", ["projected", "model_difference"], ["interaction"]),
        helper.make_node("MatMul", ["interaction", "direction"], ["difference"]),
        helper.make_node("Sub", ["log_length", "length_mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "length_scale"], ["length"]),
        helper.make_node("Add", ["difference", "length"], ["lead"]),
        helper.make_node("Mul", ["lead", "slope"], ["sloped"]),
        helper.make_node("Add", ["sloped", "intercept"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["win_rates"]),
        helper.make_node("Squeeze", ["win_rates", "last_axis"], ["win_rate"]),
    ]
    inputs = {"embedding": len(projection), "log_length": 1}
    _write(path, "mf", nodes, weights, inputs, metadata)


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
