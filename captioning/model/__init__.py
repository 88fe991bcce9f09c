"""Pictures and tokens in, losses and captions out."""
