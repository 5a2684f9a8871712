"""From a checkpoint on disk or the hub to loaded weights."""
