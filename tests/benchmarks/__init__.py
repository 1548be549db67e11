"""Ratios of time against what one would use instead, measured side by side in one interleaved run."""
