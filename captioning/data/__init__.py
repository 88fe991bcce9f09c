"""From annotation files and photographs to batches."""
