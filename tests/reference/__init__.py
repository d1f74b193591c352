"""float64 NumPy oracles: the mathematics as the papers write it, one file per idea.

- `formats`: how each weight format rounds weights and activations
- `activations`: the activation functions
- `ffn`: linear, plain and gated FFN: exact, and with a format's roundings
- `tolerance`: how far f32 arithmetic may be from them, derived from depth and dtype
"""
