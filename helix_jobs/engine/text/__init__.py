"""Text: prompts to token ids and token ids to text; strangers' code runs in processes with limits."""
