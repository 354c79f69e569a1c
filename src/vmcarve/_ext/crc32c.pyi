import numpy as np
import numpy.typing as npt

def crc32c_update(
    buf: bytes | bytearray | memoryview | npt.NDArray[np.uint8], state: int, path: int = 0
) -> int: ...
def crc32c_structures(
    buf: npt.NDArray[np.uint8],
    at: npt.NDArray[np.int64],
    length: int,
    zero_at: int,
    zero: int,
    init: int,
    out: npt.NDArray[np.uint32],
    path: int = 0,
) -> int: ...
