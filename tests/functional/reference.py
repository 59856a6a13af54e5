"""The level-set energy as the paper prints it, in NumPy float64: dense one-hot truth, a loop over classes."""

import numpy as np


def heaviside(z, epsilon, kind):
    if kind == "hf":
        return (z >= 0).astype(float)
    if kind == "ahf":
        return 0.5 * (1 + 2 / np.pi * np.arctan(z / epsilon))
    if kind == "ramp":
        return np.interp(z, [-epsilon, epsilon], [0.0, 1.0])
    return 0.5 * (1 + np.tanh(z / epsilon))


def softmax(logits):
    e = np.exp(logits - logits.max(0, keepdims=True))
    return e / e.sum(0, keepdims=True)


def image_energies(logits, target, epsilon, kind, ignore_index=255):
    """Kim 2019, eq. 4 and 5 of one image (C×H×W, H×W), summed over valid pixels: (energy, pixels) of its classes."""
    valid = target != ignore_index
    phi = softmax(logits)[:, valid] - 0.5
    labels = target[valid]
    energies = []
    for label in np.unique(labels):
        truth = (labels == label).astype(float)
        h = heaviside(phi[label], epsilon, kind)
        c1 = (truth * h).sum() / h.sum() if h.sum() > 0 else 0.0
        c2 = (truth * (1 - h)).sum() / (1 - h).sum() if (1 - h).sum() > 0 else 0.0
        energies.append((((truth - c1) ** 2 * h + (truth - c2) ** 2 * (1 - h)).sum(), truth.sum()))
    return energies


def batch_energy(logits, target, epsilon=1 / 20, kind="mahf", ignore_index=255, reduction="mean"):
    energies = []
    for one, labels in zip(logits, target, strict=True):
        found = image_energies(one, labels, epsilon, kind, ignore_index)
        energy = sum(energy for energy, _ in found)
        if reduction == "mean":
            energy /= max((labels != ignore_index).sum(), 1)
        elif reduction == "balanced":
            energy = np.mean([energy / pixels for energy, pixels in found]) if found else 0.0
        elif reduction == "log":
            energy = np.mean([-np.log(1 - energy / pixels) for energy, pixels in found]) if found else 0.0
        energies.append(energy)
    return float(np.mean(energies))
