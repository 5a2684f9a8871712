"""The `Engine` port over another server's `POST /v1/images/edits`: vLLM-Omni, SGLang or a retouch.

Needs neither torch nor weights. Everything but the model stays here.
"""
