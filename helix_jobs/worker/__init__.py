"""Worker: claims jobs, runs them through the engine, settles them, and watches over itself."""
