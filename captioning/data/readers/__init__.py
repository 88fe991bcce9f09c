"""Annotation formats -> `Photograph`s, without torch; `captioning/data/datasets.py` chooses among them."""
