"""Collects what calibration learns from a Hugging Face model in PyTorch: sensitivities by gradients, and moments.

Reads the GGUF file that llama.cpp runs and writes safetensors files specified in ``docs/format/sensitivity.md``.
Knows nothing of bases, plans or codecs: those are fitted from the files it writes.
"""

PRODUCER = "kvtc_collect 0.1.0"
