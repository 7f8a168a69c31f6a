"""autobatcher: twenty calls become one batch."""

import asyncio
import sys

from autobatcher import BatchOpenAI


async def main() -> None:
    client = BatchOpenAI(
        base_url=sys.argv[1],
        api_key="unused",
        completion_window="24h",
        batch_window_seconds=1.0,
        poll_interval_seconds=1.0,
    )
    asked = (
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": f"number {number}"}])
        for number in range(20)
    )
    for answer in await asyncio.gather(*asked):
        print(answer.choices[0].message.content)
    await client.close()


asyncio.run(main())
