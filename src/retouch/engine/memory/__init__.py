"""Where weights live. `probe` measures, `plan` decides, `report` says it in words; `weights` holds and streams."""
