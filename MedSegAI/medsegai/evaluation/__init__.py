"""Comparison of label maps with references: figures for each structure and each case, and over all cases."""

from medsegai.evaluation.cases import (
    EvaluationFiles,
    evaluate_folders,
    pair_cases,
    run_evaluation,
)
from medsegai.evaluation.mapping import LabelMapping, read_mapping
from medsegai.evaluation.measures import FIGURES, StructureFigures, evaluate, surface_figures
from medsegai.evaluation.report import CaseFigures, Evaluation, Spread, StructureSummary

__all__ = [
    "FIGURES",
    "CaseFigures",
    "Evaluation",
    "EvaluationFiles",
    "LabelMapping",
    "Spread",
    "StructureFigures",
    "StructureSummary",
    "evaluate",
    "evaluate_folders",
    "pair_cases",
    "read_mapping",
    "run_evaluation",
    "surface_figures",
]
