"""Can a run's loss be told from a few features of its delta? Nearest centroids, one seed left out at a time.

After arXiv 2604.08844, which tells training methods apart by the spectra of their updates. The classifier is the
simplest there is, as runs are few: the class whose mean is nearest once features are standardised.
"""

from collections.abc import Sequence

import numpy as np


def recognise(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Predict each of n ``labels`` [n] (0 to C - 1) from ``features`` [n, p] and the runs of the other ``folds`` [n].

    Features are standardised by mean and standard deviation of those other runs, in which every one that does not vary
    there is left out; the nearest mean of a class by Euclidean distance is predicted, the first of equals. Classes that
    no other run has cannot be predicted.
    """
    return _predict(_distances(features, folds), labels)


def permuted_accuracies(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, alike: np.ndarray, draws: int, seed: int
) -> np.ndarray:
    """Accuracies [draws] of ``recognise`` with labels permuted among runs that agree in ``alike`` [n].

    These are runs that would be one if the label did not matter, so that their labels are exchangeable; those of others
    are not, whatever fold they are in.
    """
    rng = np.random.default_rng(seed)
    distances = _distances(features, folds)
    members = [np.flatnonzero(alike == each) for each in np.unique(alike)]
    found = np.empty(draws)
    for i in range(draws):
        other = labels.copy()
        for member in members:
            other[member] = rng.permutation(labels[member])
        found[i] = (_predict(distances, other) == other).mean()
    return found


def chance(labels: np.ndarray, folds: np.ndarray) -> float:
    """The accuracy of always saying the label that is most frequent in the other folds, the first of equals."""
    right = 0
    for fold in np.unique(folds):
        counts = np.bincount(labels[folds != fold], minlength=labels.max() + 1)
        right += int((labels[folds == fold] == counts.argmax()).sum())
    return right / len(labels)


_Fold = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _distances(features: np.ndarray, folds: np.ndarray) -> Sequence[_Fold]:
    """For each fold: which runs are tested, which are learned from, and products of both with the latter."""
    found = []
    for fold in np.unique(folds):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        spread = features[train].std(axis=0)
        kept = spread > 1e-12 * np.abs(features[train]).max(axis=0, initial=0.0)
        scaled = (features[:, kept] - features[train][:, kept].mean(axis=0)) / spread[kept]
        found.append((test, train, scaled[test] @ scaled[train].T, scaled[train] @ scaled[train].T))
    return found


def _predict(distances: Sequence[_Fold], labels: np.ndarray) -> np.ndarray:
    predicted = np.empty_like(labels)
    for test, train, across, among in distances:
        member = np.equal.outer(labels[train], np.arange(labels.max() + 1)).astype(np.float64)
        sizes = member.sum(axis=0)
        weights = member / np.where(sizes > 0, sizes, 1)
        squared = np.einsum("ic,ij,jc->c", weights, among, weights) - 2 * across @ weights
        predicted[test] = np.where(sizes > 0, squared, np.inf).argmin(axis=1)
    return predicted
