import numpy as np
import numpy.typing as npt

def first_words(
    buf: npt.NDArray[np.uint8] | bytes | memoryview, at: npt.NDArray[np.uint16], word: npt.NDArray[np.uint64]
) -> None: ...
