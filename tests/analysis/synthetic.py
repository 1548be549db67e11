"""Tables like those of a real sweep, made of curves that are known."""

import hashlib

import numpy as np

from analysis.results import RiskRow, ScoreRow

HELD_OUT = (
    "miniature:held-out-category",
    "miniature:held-out-phrasing",
    "miniature:held-out-objects",
    "miniature:look-alikes",
    "xstest",
    "harmbench",
)
MODELS = ("miniature/llama", "miniature/phi3", "microsoft/Phi-3.5-mini-instruct")
FLOORS = {"tfidf-word": 0.78, "tfidf-char": 0.82, "length": 0.56}


def scores(
    models=MODELS, n_layers=6, held_out=HELD_OUT, train_set="miniature:train", seed=0
) -> list[ScoreRow]:
    """Curves that rise with depth; each held-out set a little lower than the one before."""
    rng = np.random.default_rng(seed)
    rows = []
    for model in models:
        for rank, name in enumerate((train_set, *held_out)):
            top = 0.99 - 0.035 * rank
            depth = np.linspace(0, 1, n_layers)
            rise = 0.55 + (top - 0.55) * (1 - np.exp(-4 * depth)) / (1 - np.exp(-4))
            curve = [("layer", i, a) for i, a in enumerate(rise)]
            curve += [("class-mean", i, a - 0.06) for i, a in enumerate(rise)]
            curve += [("embedding", -1, 0.5), ("pooled-mean", -1, top - 0.01)]
            curve += [("pooled-concat", -1, top)]
            curve += [(floor, -1, a - 0.02 * rank) for floor, a in FLOORS.items()]
            for readout, layer, auroc in curve:
                noisy = float(np.clip(auroc + 0.008 * rng.standard_normal(), 0.3, 1))
                rows.append(
                    ScoreRow(
                        model=model,
                        hook_point="resid_post",
                        position="last-input-token",
                        layer=layer,
                        readout=readout,
                        train_set=train_set,
                        eval_set=name,
                        held_out=bool(rank),
                        n_pos=200 + rank,
                        n_neg=180,
                        auroc=noisy,
                        auroc_lo=noisy - 0.25 * (1.02 - noisy) ** 0.8,
                        auroc_hi=noisy + 0.5 * (1 - noisy) ** 1.5,
                        seed=seed,
                        C=0.01 if readout == "layer" else float("nan"),
                    )
                )
    return rows


def risks(models=MODELS, held_out=HELD_OUT, train_set="miniature:train", n=200) -> list[RiskRow]:
    """Two normal classes in log-odds that come closer from set to set."""
    rng = np.random.default_rng(1)
    rows = []
    for model in models:
        for rank, name in enumerate((train_set, *held_out)):
            for i in range(n):
                label = i % 2
                logit = (2 * label - 1) * (4.5 - 0.7 * rank) + 1.5 * rng.standard_normal()
                rows.append(
                    RiskRow(
                        model=model,
                        readout="layer",
                        layer=4,
                        train_set=train_set,
                        eval_set=name,
                        held_out=bool(rank),
                        id=hashlib.sha256(f"{name}{i}".encode()).hexdigest()[:16],
                        label=label,
                        risk=float(1 / (1 + np.exp(-logit))),
                    )
                )
    return rows
