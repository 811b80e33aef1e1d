"""The selective scan: a diagonal state-space model whose steps, inputs and outputs depend on the token."""

from gatework.ops.recurrence.selective_scan.front import (
    selective_scan,
    selective_scan_reference,
    selective_scan_step,
)

__all__ = ["selective_scan", "selective_scan_reference", "selective_scan_step"]
