"""Training of 2D networks on pictures: U-Net and U-Net++ with encoders, fold by fold."""
