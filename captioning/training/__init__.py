"""How the model learns: the LightningModule, the stages, and what is logged on the way."""
