"""Refines class probabilities by a fully connected CRF (Krähenbühl 2011), the level-set loss's rival in Kim 2019.

Legend: C classes, H×W pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lsseg.errors import InputError, require


@dataclass(frozen=True)
class DenseCRF:
    """Runs mean-field inference in a CRF that penalises every pair of similar pixels with different labels.

    The two kernels are exp(-|Δxy|²/2σ² - |Δrgb|²/2σ'²) (appearance) and exp(-|Δxy|²/2σ²) (smoothness). The package
    pydensecrf2 approximates their sums by a permutohedral lattice. The defaults lie in the ranges in which DeepLab
    searches (Chen 2018, section 4.1). That paper does not print the values that it found.

    Args:
        appearance_weight: Weight of the first kernel; DeepLab searches 3 to 6, on validation images.
        appearance_xy: Width σ of the first kernel in pixels; DeepLab searches 30 to 100.
        appearance_rgb: Width σ' of the first kernel in colour levels (0..255); DeepLab searches 3 to 6.
        smoothness_weight: Weight of the second kernel; 3 in DeepLab.
        smoothness_xy: Width σ of the second kernel in pixels; 3 in DeepLab.

    Raises:
        InputError: If a value is out of range.
    """

    appearance_weight: float = 4.0
    appearance_xy: float = 49.0
    appearance_rgb: float = 5.0
    smoothness_weight: float = 3.0
    smoothness_xy: float = 3.0

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("appearance_weight", "smoothness_weight"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must not be negative")
        for key in ("appearance_xy", "appearance_rgb", "smoothness_xy"):
            require(getattr(self, key) > 0, key, getattr(self, key), "must be positive")

    def __call__(
        self, probabilities: npt.NDArray[np.floating], image: npt.NDArray[np.uint8], iterations: int
    ) -> npt.NDArray[np.float32]:
        """Return the probabilities after inference, C×H×W.

        Args:
            probabilities: C×H×W, probabilities of the network.
            image: H×W×3, RGB.
            iterations: Number of mean-field iterations; 10 or 5 in Kim 2019, table 4.

        Raises:
            InputError: If the package is not installed.
        """
        classes, height, width = probabilities.shape
        crf = lattice_crf()(width, height, classes)
        unary = -np.log(np.clip(probabilities, 1e-8, 1)).astype(np.float32)
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(classes, -1)))
        crf.addPairwiseGaussian(sxy=self.smoothness_xy, compat=self.smoothness_weight)
        colors = np.ascontiguousarray(image)
        crf.addPairwiseBilateral(
            sxy=self.appearance_xy, srgb=self.appearance_rgb, rgbim=colors, compat=self.appearance_weight
        )
        refined: npt.NDArray[np.float32] = np.array(crf.inference(iterations), np.float32)
        return refined.reshape(classes, height, width)


def lattice_crf() -> Any:
    """Return the class of the package pydensecrf2, or raise ``InputError`` if the package is not installed."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise InputError(
            "a dense CRF (model.crf_iterations) needs the package pydensecrf2: pip install 'lsseg[crf]'"
        ) from error
    return DenseCRF2D
