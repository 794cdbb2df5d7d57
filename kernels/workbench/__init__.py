"""What surrounds the kernels: measuring, proving, tracing and mutating them, on a GPU or on the emulator."""
