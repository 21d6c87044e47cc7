"""Network architectures: plain torch modules that know nothing of images, cards or files."""
