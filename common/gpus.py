"""Peak rates from the datasheets of the GPUs that figures are published for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Datasheet:
    """Rates of one GPU: memory in GB/s, and dense bfloat16 matrix products in TFLOP/s."""

    memory: float
    bfloat16: float


# By the name that the driver reports. Source: NVIDIA's datasheets of the H100, H200 and A100 (SXM).
DATASHEETS = {
    "NVIDIA H100 80GB HBM3": Datasheet(3350, 989),
    "NVIDIA H200": Datasheet(4800, 989),
    "NVIDIA A100-SXM4-80GB": Datasheet(2039, 312),
}


def datasheet(name: str) -> Datasheet | None:
    """Return the datasheet's rates of the GPU with this name; None if it is not listed above.

    >>> datasheet("NVIDIA H100 80GB HBM3").memory, datasheet("NVIDIA H200 NVL")
    (3350, None)
    """
    return DATASHEETS.get(name)
