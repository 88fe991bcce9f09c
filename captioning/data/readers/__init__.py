"""Annotation formats -> `Photograph`s, without torch; `captioning/data/layouts.py` chooses among them."""
