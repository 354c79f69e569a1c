import numpy as np
import numpy.typing as npt

def unit_chances(
    weight: npt.NDArray[np.float64],
    hole: npt.NDArray[np.float64],
    joined: npt.NDArray[np.float64],
    beside: npt.NDArray[np.uint8],
    follows: float,
    none: float,
    jump: float,
    near: float,
    stray: float,
    chance: npt.NDArray[np.float64],
    power: npt.NDArray[np.int32],
) -> tuple[float, float]: ...
