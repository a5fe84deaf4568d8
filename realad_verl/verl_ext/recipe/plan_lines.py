"""A line of a plan, and what its arithmetic shares."""

from dataclasses import dataclass

GIB, MIB = 1024**3, 1024**2
DTYPE_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}


@dataclass(frozen=True)
class Line:
    """One quantity: what it is, its value in ``unit``, and the formula with the numbers in it.

    ``low``: where the quantity is a range, its lower end; ``value`` is then the upper one.
    """

    name: str
    value: float
    unit: str
    formula: str
    low: float | None = None

    def text(self) -> str:
        """The line for a person."""
        amount = f"{self.value:,.1f}" if self.low is None else f"{self.low:,.1f} to {self.value:,.1f}"
        return f"  {self.name:<28}{amount:>16} {self.unit:<12} = {self.formula}"
