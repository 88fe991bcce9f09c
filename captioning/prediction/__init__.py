"""Where pictures come from and where captions go."""
