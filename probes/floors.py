"""What the words alone give: the floors that a probe must clear to have shown anything.

TF-IDF of words (1-2) or characters (2-5), and length, each under a logistic regression with C
chosen as the probe's: on the same folds, inside the training split. Vectorisers see the training
rows only.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from probes.folds import Folds

Floor = Literal["tfidf-word", "tfidf-char", "length"]
FLOORS: tuple[Floor, ...] = get_args(Floor)

CS = (0.1, 1.0, 10.0, 100.0)
"""Larger than a probe's: rows of TF-IDF have length 1, not sqrt(d_model)."""


def cross_validated_scores(
    floor: Floor, texts: Sequence[str], labels: Int64[ndarray, "prompt"], folds: Folds
) -> Float64[ndarray, "prompt"]:
    """Out-of-fold logits, comparable within a fold of `folds.fold` only."""
    scores = np.empty(len(labels))
    for split in range(folds.n):
        test = folds.fold == split
        chosen = [text for text, held in zip(texts, test, strict=True) if held]
        scores[test] = _fit(floor, texts, labels, folds, split).decision_function(chosen)
    return scores


def held_out_scores(
    floor: Floor,
    texts: Sequence[str],
    labels: Int64[ndarray, "prompt"],
    folds: Folds,
    held_out: Sequence[Sequence[str]],
) -> list[Float64[ndarray, "held_out_prompt"]]:
    """Logits on each held-out set by the floor fitted on all rows."""
    fitted = _fit(floor, texts, labels, folds, folds.n)
    return [fitted.decision_function(list(other)) for other in held_out]


def lengths(texts: Sequence[str]) -> Float[ndarray, "prompt 2"]:
    """Log number of characters and of words."""
    return np.log1p([[len(text), len(text.split())] for text in texts])


def _vectoriser(floor: Floor) -> Pipeline:
    if floor == "tfidf-word":
        # Punctuation too: a question mark is a word as good as any.
        return make_pipeline(
            TfidfVectorizer(token_pattern=r"\w+|[^\w\s]+", ngram_range=(1, 2), sublinear_tf=True)
        )
    if floor == "tfidf-char":
        return make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        )
    return make_pipeline(FunctionTransformer(lengths), StandardScaler())


def _fit(floor: Floor, texts: Sequence[str], labels: ndarray, folds: Folds, split: int) -> Pipeline:
    train = folds.train(split)
    inner, y = folds.inner[split, train], labels[train]
    vectoriser = _vectoriser(floor)
    X = vectoriser.fit_transform([text for text, kept in zip(texts, train, strict=True) if kept])
    losses = []
    for C in CS:
        predicted = np.empty(len(y))
        for i in range(inner.max() + 1):
            part = LogisticRegression(C=C, max_iter=1000).fit(X[inner != i], y[inner != i])
            predicted[inner == i] = part.predict_proba(X[inner == i])[:, 1]
        losses.append(log_loss(y, predicted, labels=[0, 1]))
    final = LogisticRegression(C=CS[int(np.argmin(losses))], max_iter=1000).fit(X, y)
    return make_pipeline(vectoriser, final)
