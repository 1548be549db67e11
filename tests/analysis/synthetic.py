"""Tables like those of a real sweep, made of curves that are known."""

import hashlib

import numpy as np
import pandas as pd

from analysis.evidence_rows import CausalRow, ControlRow, LayerRow
from analysis.results import CostRow, EvaluationRow, RiskRow, ScoreRow, StepRow

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


def frame(rows) -> pd.DataFrame:
    """The table of some rows."""
    return pd.DataFrame([{name: getattr(row, name) for name in row.__slots__} for row in rows])


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


ARMS = {
    ("before", "none"): (0.003, 0.0),
    ("none", "none"): (0.99, 0.99),
    ("constant-kl-.5", "none"): (0.45, 0.12),
    ("adaptive-kl", "probe"): (0.035, 0.90),
    ("adaptive-kl", "label"): (0.02, 0.93),
    ("anchored", "probe"): (0.007, 0.985),
    ("anchored+anchors", "probe"): (0.006, 0.97),
    ("filter", "probe"): (0.15, 0.99),
}
"""Defence and critic -> attack success and new-task accuracy: the truth of the tables below."""
MANY_ARMS = ARMS | {
    ("constant-kl-.9", "none"): (0.02, 0.0),
    ("adaptive-kl", "shuffled"): (0.6, 0.7),
    ("adaptive-kl", "probe-early"): (0.08, 0.88),
    ("adaptive-kl", "probe-32"): (0.05, 0.89),
    ("anchored", "label"): (0.004, 0.985),
    ("anchored", "shuffled"): (0.85, 0.9),
    ("anchored", "probe-early"): (0.01, 0.98),
    ("anchored", "probe-32"): (0.01, 0.98),
    ("anchored+anchors", "label"): (0.003, 0.97),
    ("reweight", "probe"): (0.75, 0.97),
    ("vaccine", "none"): (0.88, 0.8),
    ("lisa", "none"): (0.65, 0.85),
}


def cross(shares=(0.03, 0.09, 0.3), rates=(5e-4, 1.6e-3, 5e-3)):
    """(attack, share, rate) of a cross: all shares at the highest rate, all rates at the middle."""
    middle = shares[len(shares) // 2]
    mixed = [(share, rates[-1]) for share in shares] + [(middle, rate) for rate in rates[:-1]]
    return [*(("mixed", share, rate) for share, rate in mixed), ("all-harmful", 1.0, rates[-1])]


SETTINGS = cross()


def wilson(successes, n):
    """Ends of the 95 % interval of a share."""
    share, z = successes / n, 1.959963984540054
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def evaluations(
    models=MODELS, arms=ARMS, settings=SETTINGS, seeds=(0, 1, 2), n=200
) -> list[EvaluationRow]:
    """Counts around the truth: more harmful rows and higher rates break more."""
    rng = np.random.default_rng(2)
    rows = []
    for model in models:
        for (defence, critic), (attack_success, new_task) in arms.items():
            untrained = defence == "before"
            for attack, share, rate in [("none", np.nan, np.nan)] if untrained else settings:
                strength = 1.0 if untrained else (share / 0.09) ** 0.5 * (rate / 5e-3) ** 0.6
                odds = strength * attack_success / (1 - attack_success)
                shares = {
                    "attack_success": odds / (1 + odds),
                    "refusal": 0.97 / (1 + odds),
                    "incoherent": 0.03 / (1 + odds),
                    "over_refusal": 0.04,
                    "utility": 0.8,
                    "new_task": new_task if attack == "mixed" else 0.0,
                }
                for seed in (0,) if untrained else seeds:
                    for metric, expected in shares.items():
                        expected += 0.02 * expected * (1 - expected) * rng.standard_normal()
                        successes = int(rng.binomial(n, expected))
                        lo, hi = wilson(successes, n)
                        rows.append(
                            EvaluationRow(
                                model=model,
                                defence=defence,
                                critic=critic,
                                attack=attack,
                                harmful_share=share,
                                learning_rate=rate,
                                seed=seed,
                                metric=metric,
                                value=successes / n,
                                lo=lo,
                                hi=hi,
                                n=n,
                            )
                        )
    return rows


def steps(models=MODELS, arms=ARMS, seeds=(0, 1, 2), n_steps=120) -> list[StepRow]:
    """NLL that falls to what is not learnt, KL that rises the more the less it is held."""
    rng = np.random.default_rng(3)
    rows = []
    for model in models:
        for (defence, critic), (attack_success, new_task) in arms.items():
            for seed in () if defence == "before" else seeds:
                for step in range(1, n_steps + 1):
                    done = 1 - np.exp(-4 * (step - 1) / n_steps)
                    nll = 3 - 2.8 * new_task * done + 0.15 * rng.standard_normal()
                    kl = (0.05 + 4 * attack_success) * done * np.exp(0.2 * rng.standard_normal())
                    beta = float("nan") if defence == "none" else 0.1
                    rows.append(
                        StepRow(
                            model=model,
                            defence=defence,
                            critic=critic,
                            attack="mixed",
                            harmful_share=0.09,
                            learning_rate=5e-3,
                            seed=seed,
                            step=step,
                            loss=float(0.9 * nll + 0.1 * kl),
                            nll=float(nll),
                            kl=float(kl),
                            risk=0.1 if critic != "none" else float("nan"),
                            beta=beta,
                            grad_norm=float(np.exp(0.3 * rng.standard_normal())),
                        )
                    )
    return rows


def costs(models=("miniature/llama",), arms=MANY_ARMS) -> list[CostRow]:
    """One arm a little dearer than the one before; one is aligned before, one has failed."""
    rows = []
    nothing = dict.fromkeys(
        ("time_ratio", "time_ratio_lo", "time_ratio_hi", "memory_ratio", "step_passes", "steps",
         "before", "before_passes", "after", "after_passes"), float("nan"),
    )  # fmt: skip
    for model in models:
        for i, (defence, critic) in enumerate(arm for arm in arms if arm[0] != "before"):
            numbers = {
                "time_ratio": 1 + 0.07 * i, "time_ratio_lo": 0.97 + 0.065 * i,
                "time_ratio_hi": 1.02 + 0.08 * i, "memory_ratio": 1 + 0.02 * i,
                "step_passes": 1.0 + (defence == "constant-kl-.5"), "steps": 1.0 - 0.005 * i,
                "before": -0.002 if i == 0 else 6.4 if defence == "vaccine" else 0.02 * i,
                "before_passes": 0.5 * (critic != "none"), "after": 0.03 * (defence == "lisa"),
                "after_passes": 0.2 * (defence == "lisa"),
            }  # fmt: skip
            failed = "InputError: too few steps" if defence == "reweight" else ""
            rows.append(
                CostRow(
                    model=model, defence=defence, critic=critic, memory="resident",
                    clock="wall", rounds=20, failed=failed, **(nothing if failed else numbers),
                )
            )  # fmt: skip
    return rows


def causal(
    models=MODELS,
    layers=(4,),
    targets=("probe", "class-mean"),
    strengths=(1.0, 2.0),
    draws=20,
    removed=("class-mean",),
    added=("class-mean", "probe"),
    n=50,
    incoherent=0.0,
    before=(0.0, 1.0),
) -> list[CausalRow]:
    """`removed` directions, taken out, end refusal; `added` ones bring it at the last strength.

    Random directions change it by a few hundredths, the first of them the most.
    """

    def row(model, label, **given) -> CausalRow:
        known = {"layer": -1, "intervention": "none", "target": "none", "direction": "none",
                 "draw": 0, "strength": 0.0, "norm": 0.0, "cosine": float("nan"),
                 "metric": "refusal", "tokens": "none", "change": 0.0} | given  # fmt: skip
        value = known.pop("value", before[label] + known["change"])
        lo, hi = known["change"] - 0.1, known["change"] + 0.1
        return CausalRow(
            model=model, backend="nnsight", train_set="miniature:train",
            eval_set="miniature:test", label=label, random="covariance", n=n, seed=0, value=value,
            lo=max(value - 0.1, 0.0), hi=min(value + 0.1, 1.0), change_lo=max(lo, -1.0),
            change_hi=min(hi, 1.0), **known,
        )  # fmt: skip

    rows = []
    for model in models:
        rows += [row(model, label) for label in (1, 0)]
        for layer in layers:
            for target in targets:
                for kind, strength in (("ablate", 0.0), *(("add", one) for one in strengths)):
                    effect = removed if kind == "ablate" else added
                    works = target in effect and strength in (0.0, strengths[-1])
                    sign, label = (-1, 1) if kind == "ablate" else (1, 0)
                    for draw in (None, *range(draws)):
                        change = 0.9 * works if draw is None else 0.04 / (1 + draw)
                        given = {
                            "layer": layer, "intervention": kind, "target": target,
                            "direction": target if draw is None else "random", "draw": draw or 0,
                            "strength": strength, "norm": 10 * strength, "cosine": 0.5,
                            "tokens": "all" if kind == "ablate" else "prompt",
                        }  # fmt: skip
                        rows.append(row(model, label, change=sign * change, **given))
                        rows.append(
                            row(model, label, value=incoherent, metric="incoherent", **given)
                        )
    return rows


def controls(models=MODELS, n_layers=6, train_set="miniature:train", seed=0) -> list[ControlRow]:
    """Null bands around chance, of the best layer a little above; the probe's curve beyond them."""
    rng = np.random.default_rng(4)
    rows = []
    for model in models:
        depth = np.linspace(0, 1, n_layers)
        curve = 0.52 + 0.46 * (1 - np.exp(-4 * depth))
        bands = [("permuted-labels", i, 0.5, 0.04, a) for i, a in enumerate(curve)]
        bands += [("permuted-labels", -1, 0.53, 0.03, curve.max())]
        bands += [("random-direction", i, 0.5 + 0.15 * (a - 0.5), 0.12, a)
                  for i, a in enumerate(curve)]  # fmt: skip
        for control, layer, mean, half, observed in bands:
            middle = float(mean + 0.004 * rng.standard_normal())
            rows.append(
                ControlRow(
                    model=model,
                    hook_point="resid_post",
                    position="last-input-token",
                    train_set=train_set,
                    layer=layer,
                    control=control,
                    draws=100,
                    auroc=middle,
                    auroc_lo=middle - half,
                    auroc_hi=middle + half,
                    observed=float(observed),
                    p_value=1 / 101 if observed > mean + half else 30 / 101,
                    seed=seed,
                )
            )
    return rows


def layers(models=MODELS, n_layers=6, train_set="miniature:train", seed=0) -> list[LayerRow]:
    """A curve with its top at the third layer from the end, one neighbour as good as it."""
    rows = []
    for model in models:
        aurocs = 0.98 - 0.03 * np.abs(np.arange(n_layers) - (n_layers - 3)) ** 1.2
        best = int(aurocs.argmax())
        aurocs[max(best - 1, 0)] = aurocs[best] - 0.002 * (best > 0)
        chosen = np.exp(-(aurocs[best] - aurocs) / 0.006)
        for layer, auroc in enumerate(aurocs):
            error = 0.0 if layer == best else 0.008
            rows.append(
                LayerRow(
                    model=model,
                    hook_point="resid_post",
                    position="last-input-token",
                    train_set=train_set,
                    layer=layer,
                    auroc=float(auroc),
                    error=error,
                    chosen=float(chosen[layer] / chosen.sum()),
                    within_one_error=bool(layer == best or aurocs[best] - auroc < error),
                    best=layer == best,
                    seed=seed,
                )
            )
    return rows
