"""Who may use which texts of the miniatures' language (`probes.miniature.parts`)."""

from probes.miniature.parts import Part, part

__all__ = ["Part", "part"]
