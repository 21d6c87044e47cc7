"""Training of the networks that MedSegAI brings along: configuration in, weights and card out."""
