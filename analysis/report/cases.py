"""What the tables of a sweep hold on one probe: one model, fitted on one train set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar, cast

import pandas as pd

from analysis import tables as printed
from analysis.evidence_rows import (
    CalibrationRow,
    CausalRow,
    ControlRow,
    DriftRow,
    LayerRow,
    LeakRow,
    MarginRow,
    NestedRow,
    OperatingRow,
)
from analysis.rows import ScoreRow

Row = TypeVar("Row")
Tables = Mapping[str, pd.DataFrame]

USUAL = "last-input-token"
"""The position that is spoken of where several were read."""


class Place(NamedTuple):
    """Where activations were read, and the seed of what was drawn."""

    hook_point: str
    position: str
    seed: int


@dataclass(frozen=True)
class Case:
    """The evidence on one probe. A list is None where its table was not written."""

    model: str
    train_set: str
    place: Place
    others: tuple[Place, ...]
    """Other places of the same model and train set, which stand in the tables only."""
    readout: str
    """Of the probe that was frozen."""
    layer: int
    """Of the probe that was frozen: block index from 0, or -1."""
    n_layers: int
    fpr: float | None
    """False-positive rate of the threshold; None where it is not known."""
    scores: list[ScoreRow]
    """Of that probe."""
    margins: list[MarginRow] | None
    """Of that probe."""
    operating: list[OperatingRow] | None
    """Of that probe, at that rate."""
    layers: list[LayerRow] | None
    nested: list[NestedRow] | None
    controls: list[ControlRow] | None
    calibration: list[CalibrationRow] | None
    """Of that probe."""
    leaks: list[LeakRow] | None
    causal: list[CausalRow] | None
    drift: list[DriftRow] | None

    @property
    def probe(self) -> str:
        """What the probe reads: layer 4 of 0-5, or the name of another readout."""
        if self.layer < 0:
            return self.readout
        name = "layer" if self.readout == "layer" else f"{self.readout} of layer"
        return f"{name} {self.layer} of 0-{self.n_layers - 1}"


def cases(tables: Tables, fpr: float | None = None) -> list[Case]:
    """Every model and train set of the scores, in order of appearance.

    Args:
        tables: By name; of all but scores any may be missing.
        fpr: The rate that the frozen threshold was asked to keep. Where it is not among those of
            `operating`, the lowest there is taken.

    Raises:
        TableError: a probe has no in-distribution AUROC.
    """
    return [
        _case(tables, str(model), str(train_set), part, fpr)
        for (model, train_set), part in tables["scores"].groupby(["model", "train_set"], sort=False)
    ]


def only(table: pd.DataFrame, **equal: object) -> pd.DataFrame:
    """The rows that have these values in these columns; a column that is absent does not count."""
    for column, value in equal.items():
        if column in table:
            table = table[table[column] == value]
    return table


def rows(table: pd.DataFrame, row: type[Row]) -> list[Row]:
    """The table as rows of its dataclass; columns beside those are left out."""
    names = [field.name for field in fields(cast(Any, row))]
    return [row(**record) for record in cast(list[dict[str, Any]], table[names].to_dict("records"))]


def _case(
    tables: Tables, model: str, train_set: str, scores: pd.DataFrame, fpr: float | None
) -> Case:
    places = _places(scores)
    place, whose = places[0], {"model": model, "train_set": train_set}
    at: dict[str, object] = {**whose, **place._asdict()}
    here = only(scores, **at)
    readout, layer = _frozen(tables, here, whose)
    probe: dict[str, object] = {"readout": readout, "layer": layer}
    operating = tables.get("operating")
    if operating is not None:
        rates = only(operating, **whose)["fpr"]
        fpr = fpr if fpr is not None and rates.eq(fpr).any() else rates.min()
        fpr = None if pd.isna(fpr) else float(fpr)

    def found(name: str, row: type[Row], **equal: object) -> list[Row] | None:
        return rows(only(tables[name], **equal), row) if name in tables else None

    return Case(
        model=model,
        train_set=train_set,
        place=place,
        others=tuple(places[1:]),
        readout=readout,
        layer=layer,
        n_layers=int(here["layer"].max()) + 1,
        fpr=fpr,
        scores=rows(only(here, **probe), ScoreRow),
        margins=found("margins", MarginRow, **at, **probe),
        operating=found("operating", OperatingRow, **whose, **probe, fpr=fpr),
        layers=found("layers", LayerRow, **at),
        nested=found("nested", NestedRow, **at),
        controls=found("controls", ControlRow, **at),
        calibration=found("calibration", CalibrationRow, **whose, **probe),
        leaks=found("leaks", LeakRow, train_set=train_set),
        causal=found("causal", CausalRow, **whose),
        drift=found("drift", DriftRow, model=model),
    )


def _places(scores: pd.DataFrame) -> list[Place]:
    """The usual position first, then in order of appearance."""
    columns = list(Place._fields)
    known = scores[scores["readout"] == "layer"]
    found = (known if len(known) else scores)[columns].drop_duplicates()
    places = [Place(*row) for row in found.itertuples(index=False)]
    return sorted(places, key=lambda place: place.position != USUAL)


def _frozen(tables: Tables, scores: pd.DataFrame, whose: Mapping[str, object]) -> tuple[str, int]:
    """Readout and layer of the frozen probe: that of the risks, else the best layer."""
    for name in ("risks", "operating"):
        if name in tables and len(found := only(tables[name], **whose)):
            return str(found["readout"].iloc[0]), int(found["layer"].iloc[0])
    return "layer", printed.best_layer(scores)
