"""The floor that an adapter has to beat to be worth its cost: a linear model on TF-IDF of words and word pairs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from server.manifest import Metric
from training import metrics
from training.data import Row, Splits, targets


def floor(splits: Splits) -> Mapping[str, Metric]:
    """Its main measures on test: `floor_test_accuracy`, `floor_test_micro_f1` or `floor_test_pearson`.

    Of several labels, the threshold comes from the validation rows, as an adapter's does. Empty where no such model
    can be fitted: the rows have no words, or one label only.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        train = words.fit_transform(_texts(splits.train))
        truth = {name: targets(rows, splits.labels, splits.problem_type) for name, rows in splits.by_name().items()}
        test = words.transform(_texts(splits.test))
        if splits.problem_type == "regression":
            guessed = Ridge().fit(train, truth["train"]).predict(test)
            return {"floor_test_pearson": metrics.pearson(truth["test"].astype(np.float64), guessed)}
        logistic = LogisticRegression(C=10, max_iter=1000)
        if splits.problem_type == "single_label":
            guessed = logistic.fit(train, truth["train"]).predict(test)
            return {"floor_test_accuracy": metrics.accuracy(truth["test"], guessed)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a label that the training rows lack, or all have
            several = OneVsRestClassifier(logistic).fit(train, truth["train"])
        last = -len(splits.labels)  # of a single label, it gives the chance of its absence too
        validation = several.predict_proba(words.transform(_texts(splits.validation)))[:, last:]
        threshold = metrics.fit_threshold(validation, truth["validation"].astype(np.int64))
        guessed = metrics.at_least(several.predict_proba(test)[:, last:], threshold)
        return {"floor_test_micro_f1": metrics.micro_f1(truth["test"].astype(np.int64), guessed)}
    except ValueError:
        return {}


def _texts(rows: Sequence[Row]) -> list[str]:
    return [row.text if row.text_pair is None else f"{row.text} {row.text_pair}" for row in rows]
