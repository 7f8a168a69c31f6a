"""An OpenAI-compatible server of the user's as an engine: our prompts and our reading of answers, its computation."""
