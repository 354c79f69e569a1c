import numpy as np
import numpy.typing as npt

def sector_tails(buf: npt.NDArray[np.uint8] | bytes | memoryview, tail: npt.NDArray[np.uint16]) -> None: ...
