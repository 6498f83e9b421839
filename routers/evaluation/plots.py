"""Pictures of an evaluation: quality against the share of strong calls, and how far scores can be believed."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from routers.calibration import Calibration
from routers.evaluation.runner import Result


def curves(results: Sequence[Result], path: Path) -> None:
    """One panel per benchmark, one line per router; the oracle is left out, since it hides what differs below it."""
    mpl.use("Agg")
    names = list(dict.fromkeys(result.benchmark for result in results))
    figure, panels = plt.subplots(1, len(names), figsize=(5 * len(names), 4.2), squeeze=False)
    for name, panel in zip(names, panels[0], strict=True):
        for result in results:
            if result.benchmark != name or result.router == "oracle":
                continue
            style = {"random": ":", "length": "--"}.get(result.router, "-")
            label = f"{result.router} {result.apgr:.3f}"
            panel.plot([100 * share for share in result.share], result.quality, style, label=label)
        panel.set(title=name, xlabel="strong calls, %", ylabel="quality")
        panel.legend(title="APGR", fontsize="small")
    _save(figure, path)


def reliability(calibrations: Sequence[Calibration], path: Path) -> None:
    """Mean outcome against mean score, in ten bins of equal weight per router, of those that have any."""
    calibrations = [each for each in calibrations if each.reliability]
    if not calibrations:
        return
    mpl.use("Agg")
    figure, panel = plt.subplots(figsize=(5, 4.5))
    seen = [value for each in calibrations for bin_ in each.reliability for value in bin_[:2]]
    low, high = min(seen) - 0.02, max(seen) + 0.02
    panel.plot([low, high], [low, high], ":", color="grey")
    for each in calibrations:
        label = f"{each.router}, ECE {each.expected_calibration_error:.3f}"
        panel.plot([bin_[0] for bin_ in each.reliability], [bin_[1] for bin_ in each.reliability], "o-", label=label)
    panel.set(xlabel="score", ylabel="mean outcome (strong preferred)")
    panel.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
