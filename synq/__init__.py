"""SynQ: quantize a pretrained image classifier without any of its data.

An independent implementation of the method of Kim, Kim and Kang, "SynQ: Accurate Zero-shot
Quantization by Synthesis-aware Fine-tuning" (ICLR 2025).
"""

__version__ = "0.1.0"
