"""The family of MONAI: bundles and models of Auto3DSeg, whose configurations are read as data and never run.

M. J. Cardoso et al., "MONAI: An open-source framework for deep learning in healthcare", 2022. Networks are built
by MONAI itself; everything around them is done here as MONAI does it (docs/monai.md has the comparison).
`importing` makes cards, `settings` is what cards hold, `scan` and `intensities` prepare the input, `window` places
the sliding window, and `model` joins them into a part.
"""

from medsegai.families.monai.importing import import_model
from medsegai.families.monai.model import MonaiModel, load

__all__ = ["MonaiModel", "import_model", "load"]
