"""Where weights live: the plan, flat parameter buffers and streaming."""
