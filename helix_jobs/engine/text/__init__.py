"""Text: prompts to token ids and token ids to text; untrusted code runs in processes with limits."""
