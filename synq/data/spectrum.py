"""How much of each frequency images have."""

import numpy


def radial_amplitude(images: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Mean amplitude of the Fourier transform of ``[N, C, H, W]`` by its frequency.

    Frequencies are in cycles per pixel, from the lowest but 0 to 0.5. Every image has its own mean
    taken away. Rings are a bin of the shorter axis wide.
    """
    height, width = images.shape[-2:]
    centred = images - images.mean((-2, -1), keepdims=True)
    amplitude = numpy.abs(numpy.fft.fft2(centred)).mean((0, 1)) / (height * width)
    distance = numpy.hypot(numpy.fft.fftfreq(height)[:, None], numpy.fft.fftfreq(width)[None, :])
    size = min(height, width)
    ring = numpy.rint(distance * size).astype(int)
    rings = numpy.arange(1, size // 2 + 1)
    means = numpy.array([amplitude[ring == number].mean() for number in rings])
    return rings / size, means
