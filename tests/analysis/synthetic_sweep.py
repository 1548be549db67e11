"""A results folder with every table that says how far a sweep's numbers can be believed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import beta

from analysis import results
from analysis.evidence_rows import (
    CalibrationRow,
    CausalRow,
    ControlRow,
    CosineRow,
    DriftRow,
    LayerRow,
    LeakRow,
    MarginRow,
    NestedRow,
    OperatingRow,
    PromptRow,
    ReliabilityRow,
)
from tests.analysis import synthetic

MODEL, TRAIN, HELD_OUT = "miniature/llama", "miniature:train", ("miniature:test", "xstest")
SETS = (TRAIN, *HELD_OUT)
NASTY = (
    "<script>document.title = 'run'</script><img src=x onerror=alert(1)> & \"quoted\" </blockquote>"
)
"""The text of every prompt begins with it."""
PROBE = {"model": MODEL, "readout": "layer", "layer": 4, "train_set": TRAIN}
PLACE = {"model": MODEL, "hook_point": "resid_post", "position": "last-input-token",
         "train_set": TRAIN, "seed": 0}  # fmt: skip


def margin(**other):
    row = MarginRow(**PLACE, layer=4, readout="layer", eval_set="xstest", held_out=True,
                    floor="tfidf-char", margin=0.2, margin_lo=0.1, margin_hi=0.3)  # fmt: skip
    return replace(row, **other)


def operating(**other):
    row = OperatingRow(**PROBE, eval_set="xstest", held_out=True, fpr=0.01, threshold=2.0,
                       n_calibration=900, n_pos=200, n_neg=400, tpr=0.9, tpr_lo=0.85, tpr_hi=0.94,
                       realised_fpr=0.0, realised_fpr_lo=0.0, realised_fpr_hi=0.0092)  # fmt: skip
    return replace(row, **other)


def nested(**other):
    row = NestedRow(**PLACE, selected=0.981, selected_lo=0.97, selected_hi=0.99, nested=0.978,
                    nested_lo=0.96, nested_hi=0.988, optimism=0.003, layers="4 4 3 4 5",
                    )  # fmt: skip
    return replace(row, **other)


def layer(**other):
    row = LayerRow(**PLACE, layer=4, auroc=0.981, error=0.0, chosen=0.62, within_one_error=True,
                   best=True)  # fmt: skip
    return replace(row, **other)


def control(**other):
    row = ControlRow(**PLACE, layer=-1, control="permuted-labels", draws=100, auroc=0.5,
                     auroc_lo=0.45, auroc_hi=0.56, observed=0.98, p_value=1 / 101)  # fmt: skip
    return replace(row, **other)


def calibration(**other):
    row = CalibrationRow(**PROBE, eval_set="xstest", held_out=True, calibration="none",
                         frozen=True, n=450, ece=0.03, brier=0.06, log_loss=0.2)  # fmt: skip
    return replace(row, **other)


def leak(**other):
    row = LeakRow(train_set=TRAIN, eval_set="xstest", kind="near", train_id="a", eval_id="b",
                  similarity=0.9, same_label=True, same_group=False, dropped=True)  # fmt: skip
    return replace(row, **other)


def causal(**other):
    row = CausalRow(model=MODEL, backend="transformer-lens", train_set=TRAIN,
                    eval_set="miniature:test", label=1, layer=4, intervention="ablate",
                    target="probe", direction="probe", random="covariance", draw=0, strength=0.0,
                    tokens="all", norm=1.0, cosine=1.0, metric="refusal", value=0.55, lo=0.45,
                    hi=0.65, change=-0.4, change_lo=-0.48, change_hi=-0.31, n=100, seed=0,
                    )  # fmt: skip
    return replace(row, **other)


def drift(**other):
    row = DriftRow(model=MODEL, defence="adaptive-kl", critic="probe", attack="mixed",
                   harmful_share=0.09, learning_rate=5e-3, seed=0, step=100, auroc=0.95,
                   auroc_lo=0.92, auroc_hi=0.97, tpr=0.9, fpr=0.02, n=400)  # fmt: skip
    return replace(row, **other)


def exact(hits, n):
    """Share and the ends of the Clopper-Pearson interval."""
    lo = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    hi = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return hits / n, float(lo), float(hi)


def tables():
    """Every table, in one story: good on the test split, doubtful on xstest."""
    scores = synthetic.scores(models=(MODEL,), held_out=HELD_OUT, train_set=TRAIN)
    risks = synthetic.risks(models=(MODEL,), held_out=HELD_OUT, train_set=TRAIN)
    prompts = [
        PromptRow(row.eval_set, row.id, row.label, row.id, "made up", f"{NASTY} prompt {i}")
        for i, row in enumerate(risks)
    ]
    by_set = {name: [row for row in risks if row.eval_set == name] for name in SETS}
    return {
        "scores": scores,
        "risks": risks,
        "prompts": prompts,
        "margins": [
            margin(eval_set=TRAIN, held_out=False, margin=0.16, margin_lo=0.12, margin_hi=0.2),
            margin(eval_set=HELD_OUT[0], margin=0.15, margin_lo=0.09, margin_hi=0.21),
            margin(margin=0.02, margin_lo=-0.03, margin_hi=0.07),
        ],
        "operating": [row for fpr, threshold in ((0.01, 2.0), (0.05, 0.5))
                      for row in _operating(by_set, fpr, threshold)],
        "layers": [layer(layer=i, auroc=0.75 + 0.06 * i - 0.08 * (i == 5), error=0.004 * abs(i - 4),
                         chosen=(0.01, 0.01, 0.01, 0.15, 0.62, 0.2)[i], best=i == 4,
                         within_one_error=i >= 3) for i in range(6)],
        "nested": [nested()],
        "controls": [control(), control(control="random-direction", layer=4, draws=50, auroc=0.52,
                                        auroc_lo=0.3, auroc_hi=0.8, p_value=1 / 51)],
        "calibration": [calibration(eval_set=name, held_out=name != TRAIN, calibration=how,
                                    frozen=how == "none", ece=ece + 0.01 * (how == "none"))
                        for name, ece in zip(SETS, (0.01, 0.03, 0.14), strict=True)
                        for how in ("none", "platt")],
        "reliability": [
            ReliabilityRow(**PROBE, eval_set=name, held_out=name != TRAIN, calibration="none",
                           bin=i, n=40, probability=0.05 + 0.1 * i, share=exact(2 + 4 * i, 40)[0],
                           share_lo=exact(2 + 4 * i, 40)[1], share_hi=exact(2 + 4 * i, 40)[2])
            for name in SETS for i in range(10)
        ],
        "leaks": [leak(train_id=by_set[TRAIN][i].id, eval_id=by_set["xstest"][i].id,
                       similarity=0.99 - 0.01 * i, dropped=i < 5) for i in range(8)]
        + [leak(eval_set=TRAIN, kind="exact", similarity=1.0, dropped=False, same_group=True,
                train_id=by_set[TRAIN][0].id, eval_id=by_set[TRAIN][2].id)],
        "causal": [
            causal(intervention="none", target="none", direction="none", layer=-1,
                   tokens="none", value=0.95, lo=0.89, hi=0.98, change=0.0,
                   change_lo=0.0, change_hi=0.0),
            causal(),
            *(causal(direction="random", draw=i, value=0.94, change=-0.01 * i, change_lo=-0.05,
                     change_hi=0.03) for i in range(20)),
            *(causal(label=0, intervention="add", strength=s, value=0.1 + 0.1 * s, lo=0.1 * s,
                     hi=0.1 + 0.1 * s, change=0.1 * s, change_lo=0.1 * s - 0.05,
                     change_hi=0.1 * s + 0.05) for s in (1.0, 2.0, 4.0)),
            *(causal(label=0, intervention="add", strength=4.0, direction="random", draw=i,
                     value=0.03, change=0.01 * i, change_lo=-0.02, change_hi=0.05)
              for i in range(20)),
            causal(metric="incoherent", value=0.01, lo=0.0, hi=0.05, change=0.01, change_lo=0.0,
                   change_hi=0.03),
        ],
        "cosines": [CosineRow(MODEL, "resid_post", TRAIN, i, "last-input-token", "instruction-end",
                              0.1 * i) for i in range(6)],
        "drift": [drift(step=step, auroc=0.98 - 0.0006 * step, auroc_lo=0.95 - 0.0006 * step,
                        auroc_hi=0.99 - 0.0005 * step) for step in (0, 50, 100)],
    }  # fmt: skip


def _operating(by_set, fpr, threshold):
    for name, rows in by_set.items():
        flagged = {label: sum(row.risk > 1 / (1 + np.exp(-threshold)) for row in rows
                              if row.label == label) for label in (0, 1)}  # fmt: skip
        n = {label: sum(row.label == label for row in rows) for label in (0, 1)}
        tpr, fp = exact(flagged[1], n[1]), exact(flagged[0], n[0])
        yield operating(
            eval_set=name, held_out=name != TRAIN, fpr=fpr, threshold=threshold, n_pos=n[1],
            n_neg=n[0], tpr=tpr[0], tpr_lo=tpr[1], tpr_hi=tpr[2], realised_fpr=fp[0],
            realised_fpr_lo=fp[1], realised_fpr_hi=fp[2],
        )  # fmt: skip


CONFIG = {
    "models": [MODEL], "train": ["mine's.jsonl"], "held_out": [], "out": "runs/a b",
    "export": "best", "remote": False, "revision": None, "C": [0.1, 1.0], "fpr": 0.01, "seed": 0,
    "keep_leaks": False, "commit": "0123abcd",
    "versions": {"activation-critic": "0.1.0", "torch": "2.9"},
}  # fmt: skip


def write(folder: Path, *names: str) -> Path:
    """Write the tables of these names (all, if none is given) and what lies beside them."""
    made = tables()
    for name in names or made:
        results.write(made[name], folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    one = folder / "miniature-llama" / "miniature-train"
    (one / "probe").mkdir(parents=True)
    (one / "done.json").write_text(json.dumps({"caches": {TRAIN: "f8" * 32}}))
    (one / "probe" / "config.json").write_text(json.dumps({"weights": "8c" * 32}))
    return folder
