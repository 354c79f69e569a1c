import numpy as np
import numpy.typing as npt

def legal_rows(buf: npt.NDArray[np.uint8], width: int, size: int, swap: bool, illegal: int,
               low: npt.NDArray[np.uint64], high: npt.NDArray[np.uint64], unused: npt.NDArray[np.uint8],
               steps: npt.NDArray[np.uint32], rows: npt.NDArray[np.int64]) -> int: ...
