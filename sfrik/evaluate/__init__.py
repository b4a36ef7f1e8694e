"""Evaluations of a backbone: kNN, linear probe, fine-tuning, logistic regression, transfer, collapse.

Two modules share their name with a function: `sfrik.evaluate.transfer.transfer` and `sfrik.evaluate.finetune.finetune`.
"""

from sfrik.evaluate.broken import without_broken
from sfrik.evaluate.collapse import Diagnosis, diagnose
from sfrik.evaluate.feature_files import load_features
from sfrik.evaluate.features import extract_features, features_here
from sfrik.evaluate.forward import extract
from sfrik.evaluate.head_files import load_head, save_head
from sfrik.evaluate.inputs import scored_images, training_images
from sfrik.evaluate.knn import knn_accuracy, weighted_knn
from sfrik.evaluate.linear import linear_probe, linear_sweep
from sfrik.evaluate.logistic import fit_lbfgs
from sfrik.evaluate.name_files import load_names
from sfrik.evaluate.protocols import class_scores, evaluate, knn_eval, logistic_regression
from sfrik.evaluate.svm import average_precision, mean_average_precision

__all__ = [
    "Diagnosis",
    "average_precision",
    "class_scores",
    "diagnose",
    "evaluate",
    "extract",
    "extract_features",
    "features_here",
    "fit_lbfgs",
    "knn_accuracy",
    "knn_eval",
    "linear_probe",
    "linear_sweep",
    "load_features",
    "load_head",
    "load_names",
    "logistic_regression",
    "mean_average_precision",
    "save_head",
    "scored_images",
    "training_images",
    "weighted_knn",
    "without_broken",
]
