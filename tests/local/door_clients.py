"""LiteLLM and LangChain, unmodified, at the door: run by test_serve.py in the environment that has them.

.door/bin/python tests/local/door_clients.py URL MODEL
"""

import asyncio
import sys
from importlib.metadata import version

import litellm
from langchain_openai import ChatOpenAI

QUESTION = "Say in one sentence what you are for."
MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"max_tokens": 8, "temperature": 0}


def with_litellm(url: str, model: str) -> list[str]:
    asked = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "-", "messages": MESSAGES, **GREEDY}
    whole = litellm.completion(**asked)
    assert whole.usage.completion_tokens > 0
    streamed = "".join(one.choices[0].delta.content or "" for one in litellm.completion(**asked, stream=True))
    later = asyncio.run(litellm.acompletion(**asked))
    refused = ""
    try:
        litellm.completion(**asked | {"model": f"openai/{model}x"})
    except litellm.NotFoundError as error:
        refused = str(error)
    assert "Did you mean" in refused
    return [whole.choices[0].message.content, streamed, later.choices[0].message.content]


def with_langchain(url: str, model: str) -> list[str]:
    chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="-", **GREEDY)
    streamed = "".join(one.content for one in chat.stream(QUESTION))
    later = asyncio.run(chat.ainvoke(QUESTION))
    return [
        chat.invoke(QUESTION).content,
        streamed,
        later.content,
        *[one.content for one in chat.batch([QUESTION] * 2)],
    ]


if __name__ == "__main__":
    answers = with_litellm(*sys.argv[1:]) + with_langchain(*sys.argv[1:])
    assert len(set(answers)) == 1, answers
    print(f"litellm {version('litellm')}, langchain-openai {version('langchain-openai')}: {answers[0]}")
