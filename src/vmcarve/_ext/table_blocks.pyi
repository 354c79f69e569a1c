from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

class BlockSieve:
    def __init__(self, rules: Iterable[tuple[int, int, bool, int, npt.NDArray[np.uint64], npt.NDArray[np.uint64],
                                             npt.NDArray[np.uint8], npt.NDArray[np.uint32]]],
                 begins: Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]) -> None: ...

def table_blocks(sieve: BlockSieve, buf: npt.NDArray[np.uint8], found: npt.NDArray[np.uint8]) -> int: ...
