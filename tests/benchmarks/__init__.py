"""Ratios of time against what one would use instead, side by side in one interleaved run."""
