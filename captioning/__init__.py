"""Train a Vision Transformer plus GPT-2 to caption photographs, and caption folders of photographs with it."""
