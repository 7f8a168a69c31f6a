"""The page of the HTTP server: what runs, the batches, and what a person does with them, in a browser.

It works without a build step and without the internet: Jinja2 templates, one style sheet, vendored htmx and Idiomorph.
Names, prompts and answers are text: templates escape everything, and the Content-Security-Policy lets no markup run.
"""
