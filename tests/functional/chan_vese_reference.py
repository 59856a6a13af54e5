"""Chan-Vese evolution as the paper prints it, in NumPy float64: an object at a time, SciPy's Sobel filters."""

import numpy as np
from scipy.ndimage import sobel


def curvature(phi, eta):
    gy, gx = (sobel(phi, axis=axis, mode="nearest") / 8 for axis in (0, 1))
    norm = np.sqrt(gx**2 + gy**2 + eta**2)
    return (sobel(gx / norm, axis=1, mode="nearest") + sobel(gy / norm, axis=0, mode="nearest")) / 8


def evolve(phi, features, lambda1, lambda2, mu, epsilons, steps, delta="printed", eta=0.03):
    """Homayounfar 2020, eq. 4 and 7-9, of one object: H×W and D×H×W."""
    for epsilon, dt in zip(epsilons, steps, strict=True):
        h = 0.5 * (1 + 2 / np.pi * np.arctan(phi / epsilon))
        c1 = (features * h).sum((1, 2)) / h.sum()
        c2 = (features * (1 - h)).sum((1, 2)) / (1 - h).sum()
        inside = ((features - c1[:, None, None]) ** 2).sum(0)
        outside = ((features - c2[:, None, None]) ** 2).sum(0)
        spread = epsilon**2 if delta == "printed" else epsilon
        step = spread / (np.pi * (epsilon**2 + phi**2))
        phi = phi + dt * step * (mu * curvature(phi, eta) - lambda1 * inside + lambda2 * outside)
    return phi
