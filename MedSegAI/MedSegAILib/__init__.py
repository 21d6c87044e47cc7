"""The Slicer side of MedSegAI: scene (MRML), panel (Qt), controller (neither), worker client."""
