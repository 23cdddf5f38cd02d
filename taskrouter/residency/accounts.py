"""The ledger of one device: what may be used, what is charged, what is promised.

``free = min(budget − reserve, limit − foreign − overhead) − charged − promised − residue``. An explicit budget caps
what models may be charged; foreign use and our own overhead count against the device itself. So a budget below the
device leaves room for others at no cost, and a neighbour that grows past it is still seen.
"""

from __future__ import annotations

from taskrouter.residency.books import DeviceBooks
from taskrouter.types import DeviceReading, DeviceSpec


class Account:
    """One device's books, in bytes. Only the core writes here."""

    __slots__ = ("capacity", "charged", "foreign", "overhead", "promised", "residue", "spec", "usable")

    def __init__(self, spec: DeviceSpec) -> None:
        self.foreign = 0
        self.overhead = 0
        self.configure(spec)
        self.charged = 0
        self.promised = 0
        self.residue = 0

    def configure(self, spec: DeviceSpec) -> None:
        """Take over another budget; what is charged beyond it is for the core to free."""
        self.spec = spec
        self.capacity = spec.capacity
        self._use()

    def read(self, reading: DeviceReading) -> None:
        """Take over an observation; numbers below zero are a driver's mistake and count as zero."""
        self.foreign = max(0, reading.foreign)
        self.overhead = max(0, reading.overhead)
        self._use()

    def _use(self) -> None:
        """``usable``: bytes that models may be charged now, given what others use. It is asked all the time."""
        self.usable = min(self.capacity, self.spec.limit - self.foreign - self.overhead)

    @property
    def lasting(self) -> int:
        """Bytes that models may be charged when nobody else uses the device and all of them have gone."""
        return self.capacity - self.residue

    @property
    def free(self) -> int:
        """Bytes nobody has and nobody was promised; negative after foreign growth, a larger measurement or residue."""
        return self.usable - self.charged - self.promised - self.residue

    def view(self) -> DeviceBooks:
        return DeviceBooks(
            device=self.spec.id,
            capacity=self.capacity,
            foreign=self.foreign,
            overhead=self.overhead,
            charged=self.charged,
            promised=self.promised,
            residue=self.residue,
            free=self.free,
        )
