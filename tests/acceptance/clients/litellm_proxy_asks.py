"""Asks LiteLLM's proxy with OpenAI's client, which litellm brings along. Arguments: its address, and its key."""

import io
import json
import sys
import time

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


print(client.chat.completions.create(model="demo", messages=question("a chat")).choices[0].message.content)
pieces = client.chat.completions.create(model="demo", messages=question("a stream"), stream=True)
print("".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices))
print(client.completions.create(model="demo", prompt="a completion").choices[0].text)

bodies = [{"model": "demo", "messages": question(f"line {number}")} for number in range(3)]
lines = [
    {"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    for number, body in enumerate(bodies)
]
data = io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())
data.name = "lines.jsonl"
through = {"custom_llm_provider": "openai"}
file = client.files.create(file=data, purpose="batch", extra_body=through)
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", extra_body=through
)
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id, extra_query={"provider": "openai"})
print(batch.status)
content = client.files.content(batch.output_file_id, extra_query={"provider": "openai"}).text
for line in content.splitlines():
    print(json.loads(line)["response"]["body"]["choices"][0]["message"]["content"])
