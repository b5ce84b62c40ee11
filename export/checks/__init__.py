"""Compare what was exported with PyTorch: parity, fidelity, overflow, memory."""
