"""The array type of annotations: numpy's own is, since numpy 2.5, an alias that jaxtyping 0.3.11 cannot read."""

from typing import Any, TypeVar

import numpy as np

Scalar = TypeVar("Scalar", bound=np.generic)
NDArray = np.ndarray[tuple[Any, ...], np.dtype[Scalar]]
