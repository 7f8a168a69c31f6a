"""A task of inspect-ai: the fake engine answers with the words of the prompt."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def echo() -> Task:
    samples = [Sample(input=f"say word{number} please", target=f"word{number}") for number in range(6)]
    return Task(dataset=samples, solver=generate(), scorer=includes())
