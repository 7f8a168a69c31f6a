"""When work will be done: lengths of answers, costs of steps, and a simulation of both. Pure; no torch, no database."""
