"""A trained router's ONNX graph: loading it, checking it, running it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from routers.encoder import session_options
from routers.interface import RouterError

ARTIFACTS = Path(__file__).parent / "artifacts"


class Graph:
    """The graph in `path`, taking inputs of the widths in `inputs` and giving a win rate per row.

    An input of the width `None` may have any, or be missing.

    Raises:
        RouterError: the file is missing, is no such graph, has other widths or holds numbers that are not finite.
    """

    def __init__(self, path: Path, inputs: Mapping[str, int | None]) -> None:
        if not path.is_file():
            raise RouterError(f"The router's artifact {path} is missing: install upcall again, or train the router.")
        try:
            self._session = ort.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many unrelated types, some private
            reason = str(error).splitlines()[0][:120]
            raise RouterError(f"ONNX Runtime cannot load {path} ({reason}): install upcall again.") from error
        found = {each.name: each.shape[-1] for each in self._session.get_inputs()}
        if found != {
            name: found[name] if width is None else width for name, width in inputs.items() if width or name in found
        }:
            raise RouterError(
                f"{path} takes {found}, not {dict(inputs)}: it was trained for another encoder; train it again."
            )
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.version: str = metadata.get("version", "unknown")
        self.first_look: str = metadata.get("first_look", "")
        """`name@version` of the router whose scores it was trained on, where these have a weight."""
        self.widths: Mapping[str, int] = found
        shapes = {
            each.name: [size if isinstance(size, int) else 1 for size in each.shape]
            for each in self._session.get_inputs()
        }
        probe = {name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()}
        if not np.isfinite(self._session.run(None, probe)[0]).all():
            raise RouterError(f"{path} holds weights that are not numbers: install upcall again, or train the router.")

    def run(self, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Win rates, shape `(rows,)`."""
        rates: NDArray[np.float32] = self._session.run(None, inputs)[0]
        return rates
