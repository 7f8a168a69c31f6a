"""Results: what comes out: files of answers, and OpenAI's output lines."""
