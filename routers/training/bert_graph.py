"""The trained layers of the `bert` router as a module of torch, and as an ONNX graph, fp32 and int8."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from routers.minilm import WIDTH

HEADS, EPSILON = 12, 1e-12
OPSET = 20
"""The first in which Gelu is one node."""


class Layer(torch.nn.Module):
    """One encoder layer, as BERT's."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.attended = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.widened, self.narrowed = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.after_attention, self.after_all = (torch.nn.LayerNorm(WIDTH, eps=EPSILON) for _ in range(2))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`states` (n, tokens, WIDTH) and `mask` (n, tokens), true where there is a token."""
        query, key, value = (
            part(states).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask[:, None, None, :])
        states = self.after_attention(states + self.dropout(self.attended(mixed.transpose(1, 2).flatten(2))))
        wide = torch.nn.functional.gelu(self.widened(states))
        mixed = self.after_all(states + self.dropout(self.narrowed(wide)))
        return torch.as_tensor(mixed)


class Classifier(torch.nn.Module):
    """Some encoder layers and a linear head on the mean over the tokens."""

    def __init__(self, layers: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(dropout) for _ in range(layers))
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(WIDTH, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Leads, shape (n,)."""
        for layer in self.layers:
            states = layer(states, mask)
        share = mask / mask.sum(dim=1, keepdim=True)
        return torch.as_tensor(self.head(self.dropout((states * share[:, :, None]).sum(dim=1)))[:, 0])


def pretrained(encoder: Path, first: int, layers: int) -> Classifier:
    """A classifier whose layers begin as those of the MiniLM file from number `first` on."""
    graph = onnx.load(str(encoder)).graph
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    factor = {node.name: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    begin: dict[str, torch.Tensor] = {}
    for number in range(layers):
        for name, place in PLACES.items():
            where = f"encoder.layer.{first + number}.{place}"
            if place.endswith("LayerNorm"):
                weight = stored[f"{where}.weight"]
            else:  # the exporter transposed it and named it by a number
                node = f"/encoder/layer.{first + number}/{place.replace('.', '/')}/MatMul"
                weight = stored[factor[node]].T
            begin[f"layers.{number}.{name}.weight"] = torch.tensor(weight)
            begin[f"layers.{number}.{name}.bias"] = torch.tensor(stored[f"{where}.bias"])
    classifier = Classifier(layers)
    classifier.load_state_dict(begin, strict=False)  # the head is new
    return classifier


PLACES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "after_attention": "attention.output.LayerNorm",
    "widened": "intermediate.dense",
    "narrowed": "output.dense",
    "after_all": "output.LayerNorm",
}
"""The parts of a `Layer` and what the MiniLM file calls them."""


def write_bert(
    path: Path,
    classifier: Classifier,
    *,
    length: tuple[float, float],
    calibration: tuple[float, float],
    metadata: Mapping[str, str],
    quantized: bool = True,
) -> None:
    """Write the graph: states (1, tokens, WIDTH) and a logarithmic length (1, 1) to a win rate (1,).

    `length` is the mean of the logarithmic lengths, and what a unit of it adds to the lead; `calibration` slope and
    intercept. One prompt at a time needs no mask. Quantized, matrices are int8 with a scale per column.
    """
    model = _model(classifier, length, calibration)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if quantized:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder, "fp32.onnx")
            onnx.save(model, str(whole))
            quantize_dynamic(
                whole, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
                nodes_to_exclude=["head"],
            )  # fmt: skip
        model = onnx.load(str(path))
    helper.set_model_props(model, dict(metadata))
    path.write_bytes(model.SerializeToString())


def _model(classifier: Classifier, length: tuple[float, float], calibration: tuple[float, float]) -> onnx.ModelProto:
    graph = _Graph({name: tensor.numpy() for name, tensor in classifier.state_dict().items()})
    states = "states"
    for number in range(len(classifier.layers)):
        states = _layer(graph, f"layers.{number}", states)
    mean = graph.add("ReduceMean", states, graph.constant("tokens_axis", np.array([1])), keepdims=0)
    lead = graph.linear("head", mean)
    centred = graph.add("Sub", "log_length", graph.constant("length_mean", np.float32(length[0])))
    lead = graph.add("Add", lead, graph.add("Mul", centred, graph.constant("length_scale", np.float32(length[1]))))
    sloped = graph.add("Mul", lead, graph.constant("slope", np.float32(calibration[0])))
    rate = graph.add("Sigmoid", graph.add("Add", sloped, graph.constant("intercept", np.float32(calibration[1]))))
    graph.nodes.append(helper.make_node("Squeeze", [rate, graph.constant("last_axis", np.array([1]))], ["win_rate"]))
    whole = helper.make_graph(
        graph.nodes,
        "bert",
        [
            helper.make_tensor_value_info("states", TensorProto.FLOAT, [1, "tokens", WIDTH]),
            helper.make_tensor_value_info("log_length", TensorProto.FLOAT, [1, 1]),
        ],
        [helper.make_tensor_value_info("win_rate", TensorProto.FLOAT, [1])],
        graph.weights,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(whole, opset_imports=opsets, ir_version=9, producer_name="upcall")


def _layer(graph: "_Graph", name: str, states: str) -> str:
    split = graph.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS]))
    joined = graph.constant("joined", np.array([0, 0, WIDTH]))

    def part(which: str, order: list[int]) -> str:
        flat = graph.linear(f"{name}.{which}", states)
        return graph.add("Transpose", graph.add("Reshape", flat, split), perm=order)

    scale = graph.constant("scale", np.float32(1 / math.sqrt(WIDTH // HEADS)))
    scores = graph.add("MatMul", part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1]))
    chance = graph.add("Softmax", graph.add("Mul", scores, scale), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", chance, part("value", [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    attended = graph.linear(f"{name}.attended", graph.add("Reshape", mixed, joined))
    states = graph.norm(f"{name}.after_attention", graph.add("Add", states, attended))
    wide = graph.add("Gelu", graph.linear(f"{name}.widened", states))
    narrow = graph.linear(f"{name}.narrowed", wide)
    return graph.norm(f"{name}.after_all", graph.add("Add", states, narrow))


class _Graph:
    """Nodes and weights as they are added, each node named by its number or its weight."""

    def __init__(self, trained: Mapping[str, NDArray[np.float32]]) -> None:
        self._trained = trained
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output; gives the output's name."""
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """A weight, once by name."""
        if all(each.name != name for each in self.weights):
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def linear(self, name: str, inputs: str) -> str:
        """`inputs` times the weight, plus the bias."""
        weight, bias = self._trained[f"{name}.weight"], self._trained[f"{name}.bias"]
        product = self.add("MatMul", inputs, self.constant(f"{name}.weight", weight.T), name=name)
        return self.add("Add", product, self.constant(f"{name}.bias", bias))

    def norm(self, name: str, inputs: str) -> str:
        """Layer normalization."""
        weight, bias = self._trained[f"{name}.weight"], self._trained[f"{name}.bias"]
        scale, shift = self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)
        return self.add("LayerNormalization", inputs, scale, shift, axis=-1, epsilon=EPSILON)
