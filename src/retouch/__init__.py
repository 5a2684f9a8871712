"""Edit an image at a URL by a text instruction. Importing this needs no GPU, network or environment."""

__version__ = "0.1.0"
