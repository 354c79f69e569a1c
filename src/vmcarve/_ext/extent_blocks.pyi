import numpy as np
import numpy.typing as npt

def extent_blocks(
    buf: npt.NDArray[np.uint8],
    at: npt.NDArray[np.int64],
    length: int,
    limits: npt.NDArray[np.uint16],
    good: npt.NDArray[np.uint8],
) -> int: ...
