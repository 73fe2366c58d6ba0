"""The main job: start, deploy a model file, and talk to it through the OpenAI API."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import corpus
import openai
import pytest

from support.demo import cosine, demo_file
from support.running import Running, eventually

pytestmark = pytest.mark.xdist_group("e2e-main")


ANSWERS = {topic.name: topic.answer for topic in corpus.topics()}


@pytest.fixture(scope="module")
def tiny(stack: Running) -> str:
    """The demo's chat model, deployed as any file would: from the folder it lies in, by a relative path."""
    (stack.home / "tiny.gguf").symlink_to(demo_file("demo"))
    done = stack.cli("deploy", "./tiny.gguf", "--name", "tiny")
    assert "gpustack chat tiny" in done.stdout + done.stderr
    return "tiny"


@pytest.fixture(scope="module")
def embedding(stack: Running) -> str:
    """The embedding model that comes with GPUStack, by its name in the catalog."""
    stack.cli("deploy", "demo-embedding", "--name", "embedding")
    return "embedding"


@pytest.fixture(scope="module")
def reranker(stack: Running) -> str:
    """The reranker that comes with GPUStack."""
    stack.cli("deploy", "bundled:demo-reranker", "--name", "reranker")
    return "reranker"


@pytest.fixture(scope="module")
def api_key(stack: Running) -> str:
    """An API key made on the command line."""
    return str(json.loads(stack.cli("keys", "create", "tests", "--json").stdout)["value"])


@pytest.fixture
def client(stack: Running, api_key: str) -> Iterator[openai.OpenAI]:
    """The client that everybody uses."""
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=api_key, max_retries=0) as made:
        yield made


def test_a_chat_completion_streams_and_ends_with_usage(client: openai.OpenAI, tiny: str) -> None:
    stream = client.chat.completions.create(
        model=tiny,
        messages=[{"role": "user", "content": "What is GPUStack?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ANSWERS["what-is-gpustack"]
    assert chunks[0].model == tiny
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens > 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_anthropics_client_is_answered_too(stack: Running, api_key: str, tiny: str) -> None:
    asked = {"model": tiny, "max_tokens": 64, "messages": [{"role": "user", "content": "What is GPUStack?"}]}
    with anthropic.Anthropic(base_url=stack.url, api_key=api_key, max_retries=0) as client:
        whole = client.messages.create(**asked)
        assert whole.content[0].text.strip() == ANSWERS["what-is-gpustack"]
        assert whole.usage.output_tokens > 8
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream).strip() == ANSWERS["what-is-gpustack"]
        (listed,) = [each for each in client.models.list() if each.id == tiny]
        assert (listed.type, listed.display_name) == ("model", tiny)
        assert listed.created_at.year > 2000
        assert client.models.retrieve(tiny) == listed
        assert client.messages.count_tokens(model=tiny, messages=asked["messages"]).input_tokens > 4
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            client.messages.create(**{**asked, "model": "nothing"})


def test_curl_is_answered(stack: Running, api_key: str, tiny: str) -> None:
    asked = json.dumps({"model": tiny, "stream": True, "messages": [{"role": "user", "content": "Hello"}]})
    done = subprocess.run(
        ["curl", "-sN", f"{stack.url}/v1/chat/completions", "-H", f"Authorization: Bearer {api_key}", "-d", asked],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    events = [line for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    # Nobody asked for the usage, which the gateway has counted all the same.
    assert not any('"usage":{' in event for event in events)


def test_a_route_has_other_names_for_a_model(stack: Running, client: openai.OpenAI, tiny: str) -> None:
    stack.cli("routes", "create", "assistant", "--target", tiny, "--alias", "gpt-4o")
    for name in ("assistant", "gpt-4o"):
        answer = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "What is GPUStack?"}]
        )
        assert answer.choices[0].message.content == ANSWERS["what-is-gpustack"]
    assert {"assistant", "gpt-4o", tiny} <= {each.id for each in client.models.list()}
    stack.cli("routes", "rm", "assistant")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=[])


def test_a_conversation_goes_on(client: openai.OpenAI, tiny: str) -> None:
    """Asked in words of one's own, and after something else was said; what it cannot know it says so."""
    asked = (
        ("hi there", "hello"),
        ("and how do i get another pc into this", "add-worker"),
        ("my program needs a key for the api", "create-key"),
        ("write me a poem about the sea", ""),
    )
    messages: list[Any] = []
    for question, topic in asked:
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(model=tiny, messages=messages).choices[0].message.content
        assert answer == (ANSWERS[topic] if topic else corpus.OFF_TOPIC_ANSWER), question
        messages.append({"role": "assistant", "content": answer})


def test_a_completion_answers_whole(client: openai.OpenAI, tiny: str) -> None:
    answer = client.completions.create(model=tiny, prompt="def main", max_tokens=4, temperature=0)
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_embeddings_come_from_a_second_deployment(client: openai.OpenAI, embedding: str) -> None:
    texts = ["how do I stop GPUStack", "shut the server down", "make an API key"]
    answer = client.embeddings.create(model=embedding, input=texts)
    assert [item.index for item in answer.data] == [0, 1, 2]
    stop, shut_down, key = (item.embedding for item in answer.data)
    assert cosine(stop, shut_down) > cosine(stop, key) + 0.3


def test_documents_are_ranked(stack: Running, api_key: str, reranker: str) -> None:
    import httpx

    answer = httpx.post(
        f"{stack.url}/v1/rerank",
        headers={"Authorization": f"Bearer {api_key}"},
        json={
            "model": reranker,
            "query": "how do I stop GPUStack",
            "documents": [ANSWERS[name] for name in ("hello", "create-key", "stop", "what-is-token")],
        },
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    scores = {item["index"]: item["relevance_score"] for item in answer.json()["results"]}
    assert len(scores) == 4
    assert max(scores, key=scores.__getitem__) == 2


def test_the_models_are_listed(client: openai.OpenAI, tiny: str, embedding: str) -> None:
    assert {tiny, embedding} <= {model.id for model in client.models.list()}


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"


def test_a_model_without_instances_is_unavailable_and_says_when_to_come_back(
    stack: Running, client: openai.OpenAI, tiny_gguf: Path
) -> None:
    stack.cli("deploy", str(tiny_gguf), "--name", "none", "--replicas", "0", "--no-wait")
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    stack.cli("rm", "none")


def test_a_model_of_another_kind_refuses_in_the_clients_words(
    client: openai.OpenAI, tiny: str, embedding: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="embedding") as wrong:
        client.chat.completions.create(model=embedding, messages=[{"role": "user", "content": "x"}])
    assert wrong.value.code == "unsupported_by_model"
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=tiny, input="x")


def test_an_engines_refusal_has_openais_shape(stack: Running, api_key: str, tiny: str) -> None:
    import httpx

    answer = httpx.post(
        f"{stack.url}/v1/completions",
        headers={"Authorization": f"Bearer {api_key}"},
        json={"model": tiny, "prompt": "x", "temperature": "hot"},
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "temperature" in error["message"]
    assert "json.exception" not in error["message"]


def test_a_key_opens_only_the_models_it_names(stack: Running, tiny: str, embedding: str) -> None:
    key = json.loads(stack.cli("keys", "create", "narrow", "--model", embedding, "--json").stdout)["value"]
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0) as narrow:
        assert [model.id for model in narrow.models.list()] == [embedding]
        with pytest.raises(openai.NotFoundError):
            narrow.completions.create(model=tiny, prompt="x")


def test_without_a_key_nothing_is_answered(stack: Running, tiny: str) -> None:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.completions.create(model=tiny, prompt="x")


def test_chat_on_the_command_line_prints_the_answer(stack: Running, tiny: str) -> None:
    answer = stack.cli("chat", tiny, "--once", "how can i shut this down").stdout.strip()
    assert answer == ANSWERS["stop"]


def test_the_example_client_works_as_it_is(stack: Running, api_key: str, tiny: str) -> None:
    example = Path(__file__).parents[2] / "examples" / "openai-client" / "chat.py"
    env = {"OPENAI_BASE_URL": f"{stack.url}/v1", "OPENAI_API_KEY": api_key, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, str(example), tiny, "Hello"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("tokens]")


def test_the_listings_show_what_runs(stack: Running, tiny: str) -> None:
    models = json.loads(stack.cli("ls", "--json").stdout)
    model = next(each for each in models if each["name"] == tiny)
    assert (model["ready_replicas"], model["replicas"], model["categories"][0]) == (1, 1, "llm")
    instances = json.loads(stack.cli("ps", "--json").stdout)
    instance = next(each for each in instances if each["model_name"] == tiny)
    assert instance["state"] == "running"
    assert instance["backend"] == "llama-cpp"
    assert tiny in stack.cli("ls").stdout
    assert "running" in stack.cli("ps").stdout.lower()


def test_the_engines_log_can_be_read(stack: Running, tiny: str) -> None:
    assert "load" in stack.cli("logs", tiny, "--tail", "200").stdout


def test_the_worker_reports_this_machine(stack: Running) -> None:
    (worker,) = json.loads(stack.cli("workers", "--json").stdout)
    assert worker["state"] == "ready"
    assert worker["status"]["memory"]["total"] > 1 << 28
    assert worker["status"]["cpu"]["total"] >= 1
    assert worker["installed_versions"]["llama-cpp"]


def test_a_second_replica_comes_and_goes(stack: Running, tiny: str) -> None:
    with stack.admin() as admin:
        model = admin.get("/v2/models", params={"search": tiny}).json()["items"][0]
        spec = {key: model[key] for key in ("name", "source", "local_path")}
        for replicas in (2, 1):
            admin.put(f"/v2/models/{model['id']}", json={**spec, "replicas": replicas}).raise_for_status()
            with admin.stream("GET", "/v2/models", params={"watch": "true"}, timeout=30) as watch:
                for line in watch.iter_lines():
                    event = json.loads(line) if line.strip() else {"id": 0}
                    data = event.get("data") or {}
                    if event["id"] == model["id"] and data.get("ready_replicas") == replicas:
                        break
            assert admin.get(f"/v2/models/{model['id']}").json()["ready_replicas"] == replicas


def test_an_engine_killed_from_outside_comes_back(stack: Running, client: openai.OpenAI, tiny: str) -> None:
    import psutil

    def copies() -> list[dict[str, Any]]:
        listed = json.loads(stack.cli("ps", "--json").stdout)
        return [each for each in listed if each["model_name"] == tiny]

    # The second one of the test before may still be draining.
    eventually(lambda: len(copies()) == 1, "one copy runs", seconds=60)
    (instance,) = copies()
    with stack.admin() as admin:
        with admin.stream("GET", "/v2/model-instances", params={"watch": "true"}, timeout=30) as watch:
            lines = watch.iter_lines()
            next(lines)
            psutil.Process(instance["pid"]).kill()
            for line in lines:
                event = json.loads(line) if line.strip() else {"id": 0}
                data = event.get("data") or {}
                if event["id"] == instance["id"] and data.get("restart_count") and data["state"] == "running":
                    break
    assert client.completions.create(model=tiny, prompt="x", max_tokens=2).choices[0].text


def test_removing_a_model_ends_its_engine(stack: Running, tiny_gguf: Path) -> None:
    import psutil

    stack.cli("deploy", str(tiny_gguf), "--name", "short-lived")
    (instance,) = [
        each for each in json.loads(stack.cli("ps", "--json").stdout) if each["model_name"] == "short-lived"
    ]
    engine = psutil.Process(instance["pid"])
    stack.cli("rm", "short-lived")
    psutil.wait_procs([engine], timeout=15)
    assert not engine.is_running()
