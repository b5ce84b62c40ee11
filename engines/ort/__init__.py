"""ONNX Runtime: sessions, execution providers, the arena."""
