"""Pictures of coloured shapes, drawn on the fly, with captions whose probabilities are known.

Nothing is downloaded, the lowest reachable perplexity is exact, and every caption can be judged true or false.
"""
