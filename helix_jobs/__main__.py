"""``python -m helix_jobs`` is the ``helix`` command."""

from helix_jobs.cli import main

if __name__ == "__main__":
    main()
