"""Quantizers, quantized layers, calibration, students and their export."""
