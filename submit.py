"""Submit prompts and look after them; see ``python submit.py --help``."""

from helix_jobs.cli import main

if __name__ == "__main__":
    main()
