"""What ``helix doctor`` looks at. A check is a function from settings to verdicts; it raises nothing it can foresee."""
