"""A judge behind any server that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, ...

Many questions at a time, each asked again after a growing pause where the server is too busy, fails
or cannot be reached. A server that stays away ends the run, whatever else is asked for: an outage
is no verdict. What has been said by then has been heard.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from probes.errors import InputError
from regularize.judging import Heard, Judge, Question, Reply, Verdict
from regularize.judging.completion import Later, asked_for, completed, pause, reason
from regularize.judging.reading import read
from regularize.judging.rubric import Rubric

if TYPE_CHECKING:
    from openai import AsyncOpenAI

BUSY = (408, 409, 425, 429)
"""Statuses after which the same question may be answered later, as after all from 500 on."""
REJECTED = (400, 413, 422)
"""Statuses that are about one question: too long, or not to the server's taste."""
LONGEST_PAUSE = 120.0
"""Seconds that a server may ask for and get."""
CONNECT = 10.0
"""Seconds in which a connection is there, or is not."""


@dataclass(frozen=True)
class Server(Judge):
    """A model behind a base URL."""

    model: str
    """As the server calls it."""
    base_url: str
    """Such as http://localhost:8000/v1."""
    rubric: Rubric
    api_key_env: str | None = None
    """Environment variable with the key; None where the server asks for none."""
    revision: str | None = None
    """Stands for the judge's weights where it is known, wherever they are served; else its server
    does."""
    max_tokens: int = 1024
    """Longest reply."""
    body: Mapping[str, object] | None = None
    """More fields of the request; None as a value leaves one of ours out."""
    concurrency: int = 16
    """Questions at a time."""
    timeout: float = 120.0
    """Seconds for one reply."""
    retries: int = 6
    """Times that a question is asked again."""
    backoff: float = 1.0
    """Seconds before the first of them, doubled each time."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.model} at {self.base_url}"

    @property
    def made_of(self) -> Mapping[str, object]:
        """Where or what the model is, the rubric, and how it is sampled; no key."""
        served = self.base_url if self.revision is None else f"revision {self.revision}"
        return {"served": served, "rubric": self.rubric.hash, **self._request}

    @property
    def _request(self) -> dict[str, object]:
        """The request but for its messages."""
        fields = {
            "model": self.model, "temperature": 0.0, "max_tokens": self.max_tokens,
            **(self.body or {}),
        }  # fmt: skip
        return {name: value for name, value in fields.items() if value is not None}

    def check(self) -> None:
        """Raise InputError for an address that cannot be one, or would be saved with a secret."""
        try:
            parts = urlsplit(self.base_url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            sound = False
        if not sound:
            raise InputError(
                f"--critic.base-url {self.base_url}: give an address such as "
                "http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise InputError(
                f"--critic.base-url: the address of {parts.hostname} holds a user, a password or a "
                "query, which would be saved with the run; put a key into an environment variable "
                "and name that with --critic.api-key-env"
            )

    def ask(self, questions: Sequence[Question], heard: Heard) -> None:
        """Many at a time; the first failure for good lets those under way end, and begins none."""
        _run(self._all(questions, heard))

    def read(self, reply: Reply) -> Verdict:
        """The reply's last line."""
        return read(reply)

    async def _all(self, questions: Sequence[Question], heard: Heard) -> None:
        openai = _library()
        failures: list[Exception] = []
        waiting = iter(enumerate(questions))
        # What the environment holds for OpenAI is not sent to anybody's server.
        headers: Any = {f"OpenAI-{name}": openai.Omit() for name in ("Organization", "Project")}
        client = openai.AsyncOpenAI(
            api_key=self._key() or "none",
            base_url=self.base_url,
            max_retries=0,  # counted here
            timeout=openai.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
            default_headers=headers,
        )

        async def work() -> None:
            for i, question in waiting:
                try:
                    heard(i, await self._one(client, question, failures))
                except Exception as error:  # whatever it is, it must end the others too
                    failures.append(error)
                if failures:
                    return

        async with client:
            await asyncio.gather(*(work() for _ in range(min(self.concurrency, len(questions)))))
        if failures:
            raise failures[0]

    async def _one(self, client: AsyncOpenAI, question: Question, failures: list[Any]) -> Reply:
        """One reply, asked for until it comes or there is no use in it."""
        import openai
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        many = stop_after_attempt(self.retries + 1)
        trying = AsyncRetrying(
            retry=retry_if_exception_type(Later),
            wait=lambda state: pause(state, self.backoff),
            stop=lambda state: bool(failures) or many(state),
            reraise=True,
        )
        try:
            return await trying(self._once, client, question)
        except Later as error:
            raise InputError(
                f"{self.name} gave no reply about {question.exchange.where}: "
                f"{self._without_key(str(error))}; what it has said so far is kept, and the same "
                "command goes on (--critic.retries, --critic.timeout)"
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in REJECTED:
                return Reply(self._without_key(reason(error)), "rejected")
            raise InputError(await self._refusal(client, error)) from error

    async def _once(self, client: AsyncOpenAI, question: Question) -> Reply:
        """One request.

        Raises:
            Later: There was no reply, or none that is whole.
        """
        import openai

        fields: dict[str, Any] = dict(self._request)
        asked: Any = [{"role": "user", "content": self.rubric.ask(question)}]
        try:
            async with asyncio.timeout(self.timeout):
                # All fields beside: a server may know more of them than the client.
                found: Any = await client.chat.completions.create(
                    model=fields.pop("model"),
                    messages=asked,
                    extra_body=fields,
                )
            return completed(found)
        except TimeoutError as error:
            raise Later(f"nothing came in {self.timeout:g} s") from error
        except openai.APITimeoutError as error:
            raise Later(f"nothing came in {self.timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise Later(f"{reason(error)} ({reason(error.__cause__ or error)})") from error
        except openai.APIStatusError as error:
            if error.status_code in BUSY or error.status_code >= 500:
                after = asked_for(error.response.headers)
                said = f"status {error.status_code}, {reason(error)}"
                if after is not None and after > LONGEST_PAUSE:
                    raise InputError(
                        f"{self.name} asks for a pause of {after:.0f} s "
                        f"({self._without_key(said)}); what it has said so far is kept: give the "
                        "same command again after it"
                    ) from error
                raise Later(said, after) from error
            raise
        except (openai.APIError, ValueError, TypeError) as error:
            raise Later(f"what it sent is no chat completion ({reason(error)})") from error

    async def _refusal(self, client: AsyncOpenAI, error: Any) -> str:
        """Why it will answer nothing at all, and what to do."""
        said = f"{self.name}: status {error.status_code}, {self._without_key(reason(error))}"
        if error.status_code in (401, 403):
            key = self.api_key_env
            return f"{said}; " + (
                "it asks for a key: put it into an environment variable and name that with "
                "--critic.api-key-env"
                if key is None
                else f"is the key in {key} the right one?"
            )
        if error.status_code != 404:
            return said
        try:
            models = [model.id async for model in client.models.list()]
        except Exception:  # it was only to help
            return f"{said}; --critic.base-url often ends in /v1, and --critic.model names a model"
        return f"{said}; it has the models {', '.join(models) or 'none'} (--critic.model)"

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise InputError(
                f"--critic.api-key-env {self.api_key_env}: that environment variable is not set"
            )
        return key

    def _without_key(self, text: str) -> str:
        """What a server says may be shown and kept, but for the key."""
        key = self._key()
        return text if key is None else text.replace(key, "***")


def _library() -> Any:
    try:
        import openai
        import tenacity  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"a judge behind a server needs {error.name}: pip install 'activation-critic[judge]'"
        ) from error
    return openai


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in a notebook's running loop too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
