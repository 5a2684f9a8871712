"""The model: the Qwen-Image-Edit family behind the `Engine` port of `retouch.editing.ports`.

Start at `checkpoint.load`. It is light to import: torch and the rest come when a checkpoint is loaded.
"""
