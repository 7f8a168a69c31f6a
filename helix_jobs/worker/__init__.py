"""Worker: claims jobs, runs them through the engine, writes their endings, and watches over itself."""
