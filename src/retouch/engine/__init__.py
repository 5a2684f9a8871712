"""The model: the Qwen-Image-Edit family behind the `Engine` port of `retouch.ports`.

`checkpoint` is the door and light to import; it imports the other modules, and torch with them, only
when a checkpoint is loaded.
"""
