"""Successive halving: hours are spent on the arms that did best so far (Jamieson and Talwalkar 2016).

A rung is one data set with one seed: the data sets in their order with the first seed, then with the second, and so on.
`survivors: [20, 8, 4]` trains 20 arms on the first rung, the best 8 of them on the second, and 4 on every later one. An
arm is as good as the geometric mean of its dev NLL over the rungs so far, which weighs a data set of long answers like
one of short ones. Arms marked `stays` are trained on every rung and take no place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from anit_ds.experiments.cells import Cell
from anit_ds.experiments.grid import CompareConfig
from anit_ds.experiments.records import Cells


def standing(config: CompareConfig, grid: Sequence[Cell], results: Cells) -> list[Cell]:
    """The cells of `grid` that are to be trained, as far as `results` tell.

    Without survivors they are all of it; else the cells of a rung that has room for fewer arms follow when those of the
    rungs before it have ended.
    """
    if not config.survivors:
        return list(grid)
    racing = [spec.label for spec in config.grid.methods if not spec.stays]
    kept: list[Cell] = []
    rungs = dict.fromkeys((cell.config.train.seed, cell.dataset) for cell in grid)
    for number, rung in enumerate(sorted(rungs, key=lambda rung: config.grid.seeds.index(rung[0]))):
        left = config.survivors[min(number, len(config.survivors) - 1)]
        if left < len(racing):
            if any(results.read(cell) is None for cell in kept):
                break
            racing = sorted(racing, key=lambda arm: _loss(arm, kept, results))[:left]
        staying = {spec.label for spec in config.grid.methods if spec.stays} | set(racing)
        kept += [cell for cell in grid if (cell.config.train.seed, cell.dataset) == rung and cell.arm in staying]
    return kept


def _loss(arm: str, ended: Sequence[Cell], results: Cells) -> float:
    """The mean log dev NLL of an arm's cells; infinite where one has failed, or there is none (its trials failed)."""
    logs = []
    for cell in ended:
        if cell.arm == arm:
            loss = (results.finished(cell) or {}).get("dev_nll")
            logs.append(math.inf if loss is None else math.log(max(loss, 1e-12)))
    return sum(logs) / len(logs) if logs else math.inf
