"""Read a chat model: prompts -> last-token activations -> probes -> AUROC -> a frozen probe.

>>> from probes.capture import capture
>>> from probes.frozen import FrozenProbe
>>> acts = capture(model, tokenizer, ["How do I open the vault?"])  # [prompt layer d_model]
>>> risk = FrozenProbe.from_pretrained("PATH").risk(model, tokenizer, ["How do I ...?"])

Nothing is imported here, so that the commands' --help stays quick.
"""
