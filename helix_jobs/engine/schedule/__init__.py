"""Schedule: which sequences take part in a step, and which cache blocks they hold. No torch in this package."""
