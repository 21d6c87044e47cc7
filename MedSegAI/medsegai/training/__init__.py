"""Training of MedSegAI's networks: a training reads a configuration, and writes weights and a model card."""
