"""Fine-tune on data that one does not trust: risk -> loss -> training -> what became of safety."""

from importlib import import_module

_EXPORTS = {
    "AdaptiveKL": "regularize.defences.adaptive_kl",
    "ConstantKL": "regularize.defences.constant_kl",
    "ProbeCritic": "regularize.critics.probe",
    "RegularizedTrainer": "regularize.trainer",
}
__all__ = ["AdaptiveKL", "ConstantKL", "ProbeCritic", "RegularizedTrainer"]


def __getattr__(name: str) -> object:
    # Imported late: a command's --help needs no torch.
    if name not in _EXPORTS:
        raise AttributeError(f"module 'regularize' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
