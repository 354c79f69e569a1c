import numpy as np
import numpy.typing as npt

def leaf_rows(
    buf: npt.NDArray[np.uint8],
    first: int,
    end: int,
    block: npt.NDArray[np.int64],
    low: npt.NDArray[np.int64],
    high: npt.NDArray[np.int64],
) -> int: ...
