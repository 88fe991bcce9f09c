"""Strings in, scores out: BLEU, ROUGE-L, CIDEr, and METEOR and SPICE where their Java parts are."""
