"""Giving a captioner away: a folder for transformers, with graphs for ONNX Runtime where they are wanted."""
