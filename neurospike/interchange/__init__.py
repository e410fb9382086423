"""Networks as files for, and from, other programs: ONNX, `torch.export` and NIR."""
