"""One step of the multiphase evolution in NumPy float64, pixel by pixel and class by class, as the equations read."""

import numpy as np


def at(plane, y, x):
    """A pixel of a plane with its edge repeated."""
    height, width = plane.shape
    return plane[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]


def gradient(plane, y, x):
    return np.array([(at(plane, y, x + 1) - at(plane, y, x - 1)) / 2, (at(plane, y + 1, x) - at(plane, y - 1, x)) / 2])


def upwind_norm(plane, y, x, force):
    here = plane[y, x]
    parts = []
    for a, b in ((at(plane, y, x - 1), at(plane, y, x + 1)), (at(plane, y - 1, x), at(plane, y + 1, x))):
        parts.append(max(a, b, here) - here if force > 0 else here - min(a, b, here))
    return np.hypot(*parts)


def competition(log_f, rho, limit):
    speed = np.empty_like(log_f)
    for i in range(len(log_f)):
        rivals = np.max(np.delete(log_f, i, 0), axis=0, initial=-np.inf)
        speed[i] = np.clip(log_f[i] - np.maximum(np.log(rho), rivals), -limit, limit)
    return speed


def step(phi, log_f, epsilon, rho, dt, limit=1.0, eta=0.005, normalize="gradient"):
    """C×H×W of one image → C×H×W; every class must be present."""
    classes, height, width = phi.shape
    speed = competition(log_f, rho, limit)
    flow = np.zeros((classes, 2, height, width))
    norm = np.zeros(phi.shape)
    for y in range(height):
        for x in range(width):
            g = [gradient(phi[i], y, x) for i in range(classes)]
            n = [v / np.sqrt(v @ v + eta**2) for v in g]
            if normalize == "gradient":
                tensor = sum(np.outer(v, v) for v in g) / (sum(v @ v for v in g) + eta**2)
            else:
                tensor = sum(np.outer(v, v) for v in n) / classes
            for i in range(classes):
                flow[i, :, y, x] = tensor @ n[i]
                norm[i, y, x] = np.sqrt(g[i] @ g[i] + eta**2)
    out = phi.copy()
    for i in range(classes):
        for y in range(height):
            for x in range(width):
                curvature = gradient(flow[i, 0], y, x)[0] + gradient(flow[i, 1], y, x)[1]
                force = speed[i, y, x]
                change = force * upwind_norm(phi[i], y, x, force) + epsilon * curvature * norm[i, y, x]
                out[i, y, x] += dt * change
    return out
