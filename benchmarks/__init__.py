"""How far from the limit, how far ahead of peers: ratios, each from one interleaved run."""
