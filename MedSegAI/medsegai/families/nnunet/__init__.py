"""The family of nnU-Net v2: folds of one configuration averaged as logits, configurations as probabilities.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
Nature Methods 2021. The output is that of nnunetv2's own predictor (docs/performance/nnunet-labels.md has the
comparison). `preparation` makes the input of a configuration, `sliding` moves the window, and `model` joins
both into parts.
"""

from medsegai.families.nnunet.importing import convert, import_model
from medsegai.families.nnunet.model import NNUNetModel, load

__all__ = ["NNUNetModel", "convert", "import_model", "load"]
