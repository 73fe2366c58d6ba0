"""How far a download is, as numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.kit.text import human_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes, and bytes per second; ``trouble`` says why it stands still."""

    total: int = 0
    done: int = 0
    rate: float = 0.0
    trouble: str = ""

    @property
    def percent(self) -> float:
        """From 0 to 100."""
        return min(100.0, 100.0 * self.done / self.total) if self.total else 0.0

    @property
    def text(self) -> str:
        """One line, as in ``1.2 of 4.0 GiB, 110.0 MiB/s``."""
        if not self.total:
            return self.trouble or "preparing the download"
        total = human_bytes(self.total)
        amount, unit = total.split(" ")
        done = human_bytes(self.done)
        done = done.removesuffix(f" {unit}") if done.endswith(f" {unit}") else done
        how = self.trouble or f"{human_bytes(self.rate)}/s"
        return f"{done} of {amount} {unit}, {how}"
