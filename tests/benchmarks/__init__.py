"""Ratios of time and memory against what one would use instead, measured side by side."""
