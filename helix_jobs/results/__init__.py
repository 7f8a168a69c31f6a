"""Results: files of answers, and OpenAI's output lines."""
