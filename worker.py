"""Run a worker until it is told to stop; see ``python worker.py --help``."""

from helix_jobs.cli import main

if __name__ == "__main__":
    main(command="worker")
