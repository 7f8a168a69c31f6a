"""helix bench: named workloads, measurements of the engine, and side-by-side runs of its peers."""
