"""What the words alone give: the floors that a probe must clear to have shown anything.

TF-IDF of words (1-2) or characters (2-5), and length, each under a logistic regression with C
chosen as the probe's: on the same folds, inside the training split. Vectorisers see the training
rows only. Features and fits are scikit-learn's, but some rows at a time: a text has far more
n-grams than it has letters, and so their matrix is kept in a temporary file once it is large.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from probes.folds import Folds

Floor = Literal["tfidf-word", "tfidf-char", "length"]
FLOORS: tuple[Floor, ...] = get_args(Floor)

CS = (0.1, 1.0, 10.0, 100.0)
"""Larger than a probe's: rows of TF-IDF have length 1, not sqrt(d_model)."""

NGRAMS: dict[str, dict[str, Any]] = {
    # Punctuation too: a question mark is a word as good as any.
    "tfidf-word": {"token_pattern": r"\w+|[^\w\s]+", "ngram_range": (1, 2)},
    "tfidf-char": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}

ROWS = 1024
"""Texts whose features are computed with at a time."""
MEMORY = 2**23
"""Bytes of features that are held; more of them are kept in a temporary file."""

Vectorise = Callable[[Sequence[str]], csr_matrix]


class Fitted(NamedTuple):
    """A floor fitted on some texts."""

    vectorise: Vectorise
    weight: Float64[ndarray, "feature"]
    bias: float

    def logits(self, texts: Sequence[str]) -> Float64[ndarray, "prompt"]:
        """Log-odds of harm."""
        found = [self.vectorise(part) @ self.weight + self.bias for part in _parts(texts)]
        return np.concatenate([np.empty(0), *found])


def cross_validated_scores(
    floor: Floor, texts: Sequence[str], labels: Int64[ndarray, "prompt"], folds: Folds
) -> Float64[ndarray, "prompt"]:
    """Out-of-fold logits, comparable within a fold of `folds.fold` only."""
    scores = np.empty(len(labels))
    for split in range(folds.n):
        test = folds.fold == split
        chosen = [text for text, held in zip(texts, test, strict=True) if held]
        scores[test] = _fit(floor, texts, labels, folds, split).logits(chosen)
    return scores


def held_out_scores(
    floor: Floor,
    texts: Sequence[str],
    labels: Int64[ndarray, "prompt"],
    folds: Folds,
    held_out: Sequence[Sequence[str]],
) -> list[Float64[ndarray, "held_out_prompt"]]:
    """Logits on each held-out set by the floor fitted on all rows."""
    if not held_out:
        return []
    fitted = _fit(floor, texts, labels, folds, folds.n)
    return [fitted.logits(other) for other in held_out]


def lengths(texts: Sequence[str]) -> Float[ndarray, "prompt 2"]:
    """Log number of characters and of words."""
    return np.log1p([[len(text), len(text.split())] for text in texts])


def _fit(floor: Floor, texts: Sequence[str], labels: ndarray, folds: Folds, split: int) -> Fitted:
    train = np.flatnonzero(folds.train(split))
    # One inner fold after the other, so that leaving one out is to skip it.
    train = train[np.argsort(folds.inner[split, train], kind="stable")]
    inner, y = folds.inner[split, train], labels[train]
    kept = [texts[row] for row in train.tolist()]
    vectorise = _vectoriser(floor, kept)
    fold_of = range(inner.max() + 1)
    with SpooledTemporaryFile(MEMORY) as file:
        matrices = [
            _Matrix(file, map(vectorise, _parts([kept[row] for row in np.flatnonzero(inner == i)])))
            for i in fold_of
        ]
        losses = []
        for C in CS:
            predicted = np.empty(len(y))
            for i in fold_of:
                others = [matrix for k, matrix in enumerate(matrices) if k != i]
                weight, bias = _logistic(others, y[inner != i], C)
                logits = [block @ weight + bias for block in matrices[i]]
                predicted[inner == i] = expit(np.concatenate(logits))
            losses.append(log_loss(y, predicted, labels=[0, 1]))
        return Fitted(vectorise, *_logistic(matrices, y, CS[int(np.argmin(losses))]))


class _Matrix:
    """Sparse rows in a file, a block after the other; written at the file's end."""

    def __init__(self, file: IO[bytes], blocks: Iterator[csr_matrix]) -> None:
        self.file, self.start, self.blocks = file, file.tell(), list[tuple[int, int]]()
        for block in blocks:
            self.width = block.shape[1]
            self.blocks.append((block.shape[0], block.nnz))
            for part, kind in ((block.data, "f8"), (block.indices, "i4"), (block.indptr, "i4")):
                file.write(part.astype(kind).tobytes())

    def __iter__(self) -> Iterator[csr_matrix]:
        self.file.seek(self.start)
        for rows, n in self.blocks:
            data = np.frombuffer(self.file.read(8 * n), "f8")
            indices = np.frombuffer(self.file.read(4 * n), "i4")
            indptr = np.frombuffer(self.file.read(4 * (rows + 1)), "i4")
            yield csr_matrix((data, indices, indptr), shape=(rows, self.width))


def _logistic(
    matrices: Sequence[_Matrix], y: Int64[ndarray, "row"], C: float
) -> tuple[Float64[ndarray, "feature"], float]:
    """scikit-learn's LogisticRegression, by its objective, solver and tolerances."""

    def objective(theta: ndarray) -> tuple[float, ndarray]:
        loss, gradient, start = 0.0, np.zeros_like(theta), 0
        for matrix in matrices:
            for X in matrix:
                target = y[start : start + X.shape[0]]
                start += len(target)
                logits = X @ theta[:-1] + theta[-1]
                residual = expit(logits) - target
                loss += float(np.logaddexp(0, logits).sum() - target @ logits)
                gradient[:-1] += X.T @ residual
                gradient[-1] += residual.sum()
        penalty = np.append(theta[:-1], 0.0) / C
        return (loss + float(penalty @ theta) / 2) / len(y), (gradient + penalty) / len(y)

    options = {"maxiter": 1000, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(matrices[0].width + 1)
    theta = minimize(objective, start, method="L-BFGS-B", jac=True, options=options).x
    return theta[:-1], float(theta[-1])


def _vectoriser(floor: Floor, texts: Sequence[str]) -> Vectorise:
    """Fitted on these texts."""
    if floor == "length":
        scaler = StandardScaler().fit(lengths(texts))
        return lambda some: csr_matrix(scaler.transform(lengths(some)))
    tfidf = TfidfVectorizer(sublinear_tf=True, **NGRAMS[floor])
    terms_of = tfidf.build_analyzer()
    n_with = Counter[str]()
    for text in texts:
        n_with.update(set(terms_of(text)))
    terms = sorted(n_with)
    tfidf.set_params(vocabulary=terms)
    # As scikit-learn smooths it: with one more text, which holds every term.
    tfidf.idf_ = np.log((1 + len(texts)) / (1 + np.array([n_with[term] for term in terms]))) + 1
    return tfidf.transform


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + ROWS] for start in range(0, len(texts), ROWS))
