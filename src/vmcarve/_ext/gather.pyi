import numpy as np
import numpy.typing as npt

def gather(buf: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], first: int, out: npt.NDArray[np.uint8]) -> int: ...
def gather_fields(
    buf: npt.NDArray[np.uint8],
    at: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint8],
) -> int: ...
