"""``python -m fastffn report``: every weight format on a real model, on what its layers truly see.

A model file (`gguf`, `safetensors`) and a tokenizer (`bpe`, `spm`, `wordpiece`) make a model that runs in NumPy
(`llama`, `bert`). `run` reads a text with it, catches every layer's FFN inputs, and hands them to the rows listed in
`variants`: `measure` times them, `quality` compares them with float64, and the whole model runs once more with each of
ours inside. `results` holds what was found; `table`, `html` (with `plots` and `svg`) and JSON show it. NumPy is all
that it needs.
"""
