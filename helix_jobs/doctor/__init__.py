"""The checks of ``helix doctor``: functions from settings to verdicts. Foreseeable errors become verdicts."""
