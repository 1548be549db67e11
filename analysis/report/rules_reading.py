"""Rules on whether the probe reads anything, and anything but the words."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.evidence_rows import ControlRow, LayerRow, MarginRow, NestedRow
from analysis.report.marks import (
    ALPHA,
    CHANCE,
    GOOD,
    OPTIMISM,
    Claim,
    Word,
    above_zero,
    beside,
    finite,
    missing,
    names,
    undefined,
    worst,
)
from analysis.report.wording import (
    digits,
    interval,
    percent,
    several,
    signed,
    signed_interval,
    with_interval,
)
from analysis.rows import ScoreRow

CONTROLS = {
    "permuted-labels": ("Beats permuted labels", "permutation of the labels",
                        "permutations of the labels"),
    "random-direction": ("Beats random directions", "random direction", "random directions"),
}  # fmt: skip
"""Control -> the claim, and what one draw and several are called."""
NOT_SHOWN = (
    "The interval includes no difference: the probe is not shown to read more than the words do."
)


def lead(probe: str, train_set: str, scores: Sequence[ScoreRow]) -> str:
    """The sentence before the claims: what the probe is, and its in-distribution AUROC."""
    inside = [row for row in scores if not row.held_out]
    if not inside:
        return f"The probe reads {probe}. It was not scored on {train_set} itself."
    row = inside[0]
    return (
        f"The probe reads {probe}. On folds of {train_set} that it was not fitted on its AUROC is "
        f"{with_interval(digits(row.auroc), interval(row.auroc_lo, row.auroc_hi))} "
        f"({several(row.n_pos, 'harmful prompt')}, {row.n_neg} harmless)."
    )


def above_words(rows: Sequence[MarginRow] | None, scores: Sequence[ScoreRow]) -> Claim:
    """The lead over the best lexical floor; mark: no difference.

    Without a held-out set it is weak at best: a lead on the train set's own folds is one on its
    own way of putting things.
    """
    name = "Reads more than the words"
    if not rows:
        return missing(name, "margins", rows)
    unseen = [row for row in rows if row.held_out]
    judged = [row for row in unseen or rows if finite(row.margin, row.margin_lo, row.margin_hi)]
    if not judged:
        return Claim(name, "not computed", "The lead over the words is undefined on every set.")
    words = [above_zero(row.margin_lo, row.margin_hi) for row in judged]
    word = worst(words)
    low = min(judged, key=lambda row: row.margin_hi if word == "fails" else row.margin_lo)
    sizes = {row.eval_set: f"; n = {row.n_pos}/{row.n_neg}" for row in scores}
    said = (
        f"{with_interval(signed(low.margin), signed_interval(low.margin_lo, low.margin_hi))} over "
        f"{low.floor} (paired{sizes.get(low.eval_set, '')})"
    )
    doubtful = len(words) - words.count("holds")
    of = f"of the {several(len(judged), 'held-out set')}"
    if word == "fails":
        text = f"On {low.eval_set} the words alone do better than the probe: AUROC {said}."
    elif not unseen and doubtful:
        text = f"On {low.eval_set}, its own train set, the AUROC's lead is {said}. {NOT_SHOWN}"
    elif not unseen:
        word = "weak"
        text = (
            f"On {low.eval_set}, its own train set, the AUROC's lead is {said}. No other set was "
            "scored, so that nothing is shown beyond it."
        )
    elif doubtful:
        text = f"Least sure {of} is {low.eval_set}: AUROC {said}. {NOT_SHOWN}"
        text += f" That is so on {doubtful} of the {len(words)}." if len(words) > 1 else ""
    else:
        text = (
            f"Its AUROC is above that of the best lexical floor on each {of}, least surely on "
            f"{low.eval_set}: {said}."
        )
    return Claim(name, word, text + undefined(len(unseen or rows) - len(judged)))


def carries_over(scores: Sequence[ScoreRow]) -> Claim:
    """AUROC on the worst held-out set; mark: `GOOD`."""
    name = "Carries over to other sets"
    unseen = [row for row in scores if row.held_out]
    if not unseen:
        return Claim(name, "not computed", "No held-out set was scored.")
    judged = [row for row in unseen if finite(row.auroc, row.auroc_lo, row.auroc_hi)]
    if not judged:
        return Claim(name, "not computed", "The AUROC is undefined on every held-out set.")
    word = worst(beside(row.auroc_lo, row.auroc_hi, GOOD) for row in judged)
    low = min(judged, key=lambda row: row.auroc)
    inside = [row.auroc for row in scores if not row.held_out]
    against = f", against {digits(inside[0])} in-distribution" if inside else ""
    text = (
        f"The worst of {several(len(judged), 'held-out set')} is {low.eval_set}: AUROC "
        f"{with_interval(digits(low.auroc), interval(low.auroc_lo, low.auroc_hi))} "
        f"(n = {low.n_pos}/{low.n_neg}){against}."
    )
    reaching = min(judged, key=lambda row: row.auroc_lo)
    if reaching is not low and reaching.auroc_lo < GOOD:
        text += (
            f" The interval of {reaching.eval_set} reaches lower: {digits(reaching.auroc)} "
            f"{interval(reaching.auroc_lo, reaching.auroc_hi)} "
            f"(n = {reaching.n_pos}/{reaching.n_neg})."
        )
    lost = [row for row in judged if row.auroc_hi < CHANCE]
    chance = [row for row in judged if row.auroc_lo <= CHANCE <= row.auroc_hi]
    if lost:
        text += f" On {names(lost)} the whole interval lies below chance (.5)."
    elif chance:
        text += f" On {names(chance)} the interval includes chance (.5)."
    elif word == "fails":
        low_sets = names(row for row in judged if row.auroc_hi < GOOD)
        text += (
            f" Better than chance, but with the whole interval below {digits(GOOD, 1)}: {low_sets}."
        )
    return Claim(name, word, text + undefined(len(unseen) - len(judged)))


def layer_choice(nested: Sequence[NestedRow] | None, layers: Sequence[LayerRow] | None) -> Claim:
    """What choosing layer and C by their scores has added; mark: `OPTIMISM`."""
    name = "The layer was chosen honestly"
    if not nested:
        return missing(name, "nested", nested)
    row = nested[0]
    if not finite(row.nested, row.nested_lo, row.nested_hi, row.optimism):
        return Claim(name, "not computed", "The nested AUROC is undefined.")
    said = with_interval(digits(row.nested), interval(row.nested_lo, row.nested_hi))
    text = (
        f"With layer and C chosen inside each fold the AUROC is {said}; the layer that looks best "
        f"has {digits(row.selected)}, so that choosing has added {digits(row.optimism)}."
    )
    word: Word
    if row.nested_lo <= CHANCE:
        word = "weak" if row.nested_hi >= CHANCE else "fails"
        text += (
            " That interval includes chance (.5)." if word == "weak" else " That is below chance."
        )
    elif row.optimism <= OPTIMISM and row.selected <= row.nested_hi:
        word = "holds"
    elif row.selected > row.nested_hi:
        word = "fails"
        text += " That is above the interval of the nested AUROC, which is the one to quote."
    else:
        word = "weak"
        text += " The nested AUROC is the one to quote."
    text += f" Chosen in the outer folds: {row.layers}."
    if layers:
        near = [str(layer.layer) for layer in layers if layer.within_one_error]
        share = sum(layer.chosen for layer in layers if layer.best)
        text += (
            f" Over resamples it is the best in {percent(share)}; within one standard error "
            f"of it: {', '.join(near) or 'none'}."
        )
    return Claim(name, word, text)


def beats(control: str, rows: Sequence[ControlRow] | None, layer: int) -> Claim:
    """The p-value of a control; mark: `ALPHA`.

    Args:
        control: permuted-labels or random-direction.
        rows: Of the model and train set.
        layer: Of the frozen probe; where the control was not run on it, its first row is taken.
    """
    name, one, many = CONTROLS[control]
    found = [row for row in rows or () if row.control == control]
    if not found:
        return missing(name, "controls", rows, f"row of {control}")
    row = next((row for row in found if row.layer in (-1, layer)), found[0])
    if not finite(row.p_value, row.observed, row.auroc):
        return Claim(name, "not computed", "The p-value is undefined.")
    what = "the whole procedure" if row.layer < 0 else f"layer {row.layer}"
    null = with_interval(digits(row.auroc), interval(row.auroc_lo, row.auroc_hi))
    text = (
        f"AUROC of {what}: {digits(row.observed)}, against {null} over "
        f"{several(row.draws, one, many)}; p = {digits(row.p_value)}."
    )
    least = 1 / (1 + row.draws)
    if row.p_value <= ALPHA:
        return Claim(name, "holds", text)
    if least > ALPHA:
        few = f" So few draws cannot give a p-value below {digits(least)}."
        return Claim(name, "weak", text + few)
    return Claim(name, "fails", f"{text} Where there is nothing to find it does as well.")
