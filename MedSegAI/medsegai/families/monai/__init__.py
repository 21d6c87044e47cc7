"""The family of MONAI: bundles and models of Auto3DSeg, whose configurations are read as data and never run.

M. J. Cardoso et al., "MONAI: An open-source framework for deep learning in healthcare", 2022. MONAI itself
builds the networks. Everything around them is computed here with the same results as in MONAI, see docs/monai.md.
`importing` makes cards, `settings` describes their content, `scan` and `intensities` prepare the input, `window`
places the sliding window, and `model` combines these to a part of a result.
"""

from medsegai.families.monai.importing import import_model
from medsegai.families.monai.model import MonaiModel, load

__all__ = ["MonaiModel", "import_model", "load"]
