"""Names for NumPy arrays by what they hold, for annotations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
UInt32s = npt.NDArray[np.uint32]
UInt64s = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
"""One vector a row."""
Samples = npt.NDArray[np.float32]
"""A waveform between -1 and 1."""
Pixels = npt.NDArray[np.uint8]
"""(height, width, 3), or with the frames before them."""
