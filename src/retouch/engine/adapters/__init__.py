"""LoRA adapters: read any key style, check every key, merge or apply."""
