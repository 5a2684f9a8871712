"""From a checkpoint to loaded weights: `find` it in a folder, in a cache (also Runpod's) or on the hub, `load` it."""
