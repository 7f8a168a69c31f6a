"""bespokelabs-curator: ten prompts, as a batch or one by one."""

import sys

from bespokelabs import curator
from datasets import Dataset


class Asker(curator.LLM):
    def prompt(self, row: dict) -> str:
        return f"number {row['number']}"

    def parse(self, row: dict, response: str) -> dict:
        return {"number": row["number"], "answer": response}


if __name__ == "__main__":
    url, way = sys.argv[1:]
    how = (
        {"backend": "openai", "batch": True, "model_name": "gpt-4o-mini"}
        if way == "batch"
        else {"backend": "litellm", "model_name": "openai/gpt-4o-mini"}
    )
    params = {"base_url": url, **({"batch_check_interval": 1} if way == "batch" else {})}
    found = Asker(**how, backend_params=params)(Dataset.from_list([{"number": number} for number in range(10)]))
    for row in getattr(found, "dataset", found):
        print(row["answer"])
