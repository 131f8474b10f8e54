"""Scoring from Python: rows in, a typed result out, every column as docs/results.md says."""

import json

import pyarrow.parquet as pq
import pytest
import torch

import psyfast
from psyfast import errors
from psyfast.api import score_again
from psyfast.data.tokenizer import Tokenizer
from psyfast.errors import BackendError, DataError, ModelError, RunError, UsageError
from psyfast.model.load.tokenizer import load_tokenizer
from psyfast.process_memory import resident_bytes
from psyfast.store.schema import RESPONSES
from tests.tiny import make_llama, transformers_logprobs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


def rows(*texts, **fields):
    return [{"text": text, "study": "s", "participant": i, **fields} for i, text in enumerate(texts)]


BANDIT = "You press <<A>>. You win 3.\nYou press <<B>>. You lose 12.\nYou press <<>>.\nYou press << A>>.\nEnd <<"


def score(model, data, **settings):
    return psyfast.score(str(model), data, **{"lane": "fp32", **settings})


def test_each_nll_is_transformers_sum_over_the_responses_tokens(model):
    result = score(model, rows(BANDIT), per_token=True)
    tokenizer = Tokenizer(load_tokenizer(str(model)))
    ids = tokenizer.encode(BANDIT).ids.tolist()
    logprobs = transformers_logprobs(model, ids)
    scored = [row for row in result.to_arrow().to_pylist() if row["nll_nats"] is not None]
    assert [row["response"] for row in scored] == ["A", "B", " A"]
    for row in scored:
        wanted = -logprobs[row["token_start"] - 1 : row["token_stop"] - 1]
        assert row["nll_nats"] == pytest.approx(wanted.sum().item(), abs=1e-4)
        assert row["token_nll_nats"] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert row["token_ids"] == ids[row["token_start"] : row["token_stop"]]


def test_every_response_has_a_row_and_says_why_it_was_not_scored(model):
    result = score(model, rows(BANDIT, "Nothing is marked here."))
    table = result.to_arrow().to_pylist()
    assert [row["response_idx"] for row in table] == [0, 1, 2, 3, 4]
    assert [row["flags"] for row in table[2:3] + table[4:]] == [["empty"], ["unbalanced_marker"]]
    for row in table:
        assert row["response"] == BANDIT[row["char_start"] : row["char_stop"]]
        assert (row["nll_nats"] is None) == (row["token_start"] is None) == (row["rank"] is None)
    assert result.participants["num_responses"].to_pylist() == [5, 0]
    assert result.manifest["flags"]["tiny"]["plain"]["empty"] == 1
    assert result.folder is None


def test_the_columns_and_their_types(model, tmp_path):
    result = score(model, rows(BANDIT), out=tmp_path / "run")
    part = next((tmp_path / "run").rglob("part-*.parquet"))
    assert pq.read_schema(part).remove_metadata().equals(RESPONSES.remove_metadata())
    assert result.to_pandas().shape[0] == 5
    assert set(result.to_pandas().columns) == {*RESPONSES.names, "model", "condition"}
    for path in ("participants.parquet", "transcripts.parquet", part):
        assert pq.read_schema(tmp_path / "run" / path).metadata[b"schema_version"] == b"1"
    assert pq.read_table(tmp_path / "run" / "transcripts.parquet")["text"].to_pylist() == [BANDIT]


def test_options_are_scored_in_the_responses_place(model):
    """Each option against a transcript that has it in the response's place, scored as a response of its own."""
    options = ["A", "B", "neither of them"]
    text = "You press <<A>>. You win 3.\nYou press <<neither of them>>."
    (first, second) = score(model, rows(text, options=options)).to_arrow().to_pylist()
    assert first["options"] == options
    assert first["option_nll_nats"][0] == first["nll_nats"]
    assert second["option_nll_nats"][2] == second["nll_nats"]
    for option, nll in zip(options, first["option_nll_nats"], strict=True):
        (alone, _) = score(model, rows(text.replace("<<A>>", f"<<{option}>>"))).to_arrow().to_pylist()
        assert nll == pytest.approx(alone["nll_nats"], abs=1e-4)
    for option, nll in zip(options, second["option_nll_nats"], strict=True):
        (_, alone) = score(model, rows(text.replace("<<neither of them>>", f"<<{option}>>"))).to_arrow().to_pylist()
        assert nll == pytest.approx(alone["nll_nats"], abs=1e-4)


def test_an_option_that_begins_another_is_scored_through_its_close_marker(model):
    (row,) = score(model, rows("You say <<1>>.", options=["1", "12"])).to_arrow().to_pylist()
    assert "terminated" in row["flags"]
    assert row["option_nll_nats"][0] > row["nll_nats"]


def test_a_response_beyond_the_context_is_flagged_and_not_cut(model):
    text = "You press <<A>>. " * 40
    table = score(model, rows(text), context_limit=50).to_arrow().to_pylist()
    assert len(table) == 40
    kept = [row for row in table if row["nll_nats"] is not None]
    assert 0 < len(kept) < 40 and all(row["token_stop"] <= 50 for row in kept)
    assert all(row["flags"] == ["truncated"] for row in table[len(kept) :])
    assert kept[0]["nll_nats"] == pytest.approx(score(model, rows(text)).to_arrow()["nll_nats"][0].as_py(), abs=1e-5)


def test_the_paper_protocol_scores_past_the_context(model):
    """512 positions; the text has more tokens."""
    table = score(model, rows("You press <<A>>. " * 200), protocol="paper").to_arrow().to_pylist()
    past = [row for row in table if "past_context" in row["flags"]]
    assert past and all(row["nll_nats"] is not None for row in past)


def test_reaction_times_and_personas_are_kept(model):
    data = rows("<<A>> and <<B>>", RTs=["512.5", "NaN"], sex="F", mood="good")
    result = score(model, data)
    assert result.to_arrow()["rt_ms"].to_pylist() == [512.5, None]
    (participant,) = result.participants.to_pylist()
    assert participant["gender"] == "female" and json.loads(participant["extra"])["mood"] == "good"


def test_a_model_that_returns_no_numbers_is_flagged_and_never_averaged(tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_llama(tmp_path / "broken") / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"][:] = 3e38  # finite, its products are not
    save_file(tensors, path)
    result = score(tmp_path / "broken", rows("You press <<A>>. Then <<B>>.", options=["A", "B"]))
    for row in result.to_arrow().to_pylist():
        assert row["nll_nats"] is None and row["rank"] is None and "nan" in row["flags"]
        assert row["option_nll_nats"] == [None, None]
    assert result.summary[0].num_scored == 0 and result.summary[0].mean_nll_nats is None


def test_several_models_at_once(model, tmp_path):
    other = make_llama(tmp_path / "other", seed=3)
    result = psyfast.score([str(model), str(other)], rows(BANDIT), lane="fp32")
    means = {row.model_id: row.mean_nll_nats for row in result.summary if row.study == "s"}
    assert means.keys() == {"tiny", "other"} and means["tiny"] != means["other"]


def test_a_generator_of_rows_is_read_once_and_kept(model):
    assert score(model, (row for row in rows(BANDIT))).to_arrow().num_rows == 5


def test_relative_paths_hold_from_another_folder(model, tmp_path, monkeypatch):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": BANDIT}))
    monkeypatch.chdir(tmp_path)
    score(model, "mine.jsonl", out="run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, comparison = score_again(tmp_path / "run" / "manifest.json", tmp_path / "again")
    assert comparison.same_bits


def test_a_run_under_a_forced_backend_is_made_again_with_it(model, tmp_path, monkeypatch):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": BANDIT * 3}))
    monkeypatch.setenv("PSYFAST_FORCE_BACKEND", "reference")
    score(model, path, out=tmp_path / "run")
    monkeypatch.delenv("PSYFAST_FORCE_BACKEND")
    run, comparison = score_again(tmp_path / "run" / "manifest.json", tmp_path / "again")
    assert set(run.read_manifest()["arithmetic"]["operators"].values()) == {"reference"}
    assert comparison.same_bits


def test_the_threads_of_a_call_do_not_outlive_it(model):
    before = torch.get_num_threads()
    score(model, rows(BANDIT), threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_run_is_made_again_from_its_manifest(model, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows(BANDIT, BANDIT * 2)))
    score(model, path, out=tmp_path / "run")
    _, comparison = score_again(tmp_path / "run" / "manifest.json", tmp_path / "again")
    assert comparison.same_bits and comparison.num_rows == 15
    first, second = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("run", "again"))
    moved = {"threads": None, "window_slots": None}
    assert first["config"] | moved == second["config"] | moved
    path.write_text(path.read_text().replace("win 3", "win 4"))
    with pytest.raises(RunError, match="transcripts had sha256"):
        score_again(tmp_path / "run" / "manifest.json", tmp_path / "third")


def test_the_manifest_says_how_the_run_was_made(model, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": BANDIT}))
    manifest = score(model, path, seed=7).manifest
    assert manifest["status"] == "complete"
    assert manifest["config"]["seed"] == 7 and manifest["config"]["protocol"] == "exact"
    assert manifest["arithmetic"]["operators"]["linear_nll"] == "cpu"
    assert manifest["arithmetic"]["operators"]["attention"] == "cpu"
    entry = manifest["models"]["tiny"]
    assert len(entry["weights_sha256"]["model.safetensors"]) == len(entry["tokenizer_sha256"]) == 64
    assert entry["traits"]["num_layers"] == 3 and entry["stored_as"] == ["F32"]
    assert manifest["data"]["files"][0]["path"] == str(path)
    assert manifest["data"]["warnings"]["missing_study"] == 1
    tokens = manifest["tokens"]["tiny"]["plain"]
    assert tokens["total"] >= tokens["unique"] > tokens["scored_rows"] > 0
    assert entry["dtype"] == "float32" and entry["quantisation"] is None and len(manifest["sessions"]) == 1
    assert {"scan", "engine", "plan"} <= set(manifest["seconds"])
    assert torch.__version__.startswith(manifest["libraries"]["torch"].split("+")[0])


def test_the_manifest_holds_the_engine_against_the_machines_peak(model):
    result = score(model, rows(BANDIT))
    manifest = result.manifest
    tokens = manifest["tokens"]["tiny"]["plain"]
    traits = manifest["models"]["tiny"]["traits"]
    peak = manifest["peak"]
    num, hidden, vocab = tokens["unique"], traits["hidden_size"], traits["vocab_size"]
    heads = 2 * (traits["num_heads"] + traits["num_kv_heads"]) * traits["head_dim"]
    layer = hidden * (heads + 3 * traits["intermediate_size"])
    pairs = num * (num + 1) // 2
    attention = 4 * traits["head_dim"] * traits["num_heads"] * pairs * traits["num_layers"]
    required = 2 * layer * traits["num_layers"] * num + attention + 2 * hidden * vocab * tokens["scored_rows"]
    assert peak["required_gflop"] == pytest.approx(required / 1e9)
    assert 0 < peak["spared_gflop"] < peak["required_gflop"] / traits["num_layers"]
    assert peak["engine_seconds"] == pytest.approx(manifest["seconds"]["engine"])
    assert peak["share"] == pytest.approx(peak["required_gflop"] / peak["engine_seconds"] / peak["gflop_per_s"])
    assert manifest["sessions"][-1]["peak"] == peak


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"protocol": "exakt"}, UsageError, "protocol is 'exakt'"),
        ({"lane": "fp16"}, UsageError, "lane is 'fp16'"),
        ({"limit": 0}, UsageError, "limit is 0"),
        ({"colour": "red"}, UsageError, "colour"),
        ({"device": "tpu9"}, errors.BackendError, "tpu9"),
        ({"backend": "mkl"}, errors.BackendError, "mkl"),
        ({"context_limit": -1}, UsageError, "context_limit"),
        ({"weights": "disk"}, UsageError, "expected one of auto, resident, streamed"),
        ({"memory_limit": "lots"}, UsageError, "memory limit 'lots' is not a size"),
        ({"memory_limit": 10_000_000}, UsageError, r"0\.01 GB of memory cannot hold it.*--memory-limit \d\.\d\dGB"),
    ],
)
def test_settings_that_cannot_be_meant(model, settings, error, message):
    with pytest.raises(error, match=message):
        score(model, rows(BANDIT), **settings)


def test_a_device_that_is_not_there(model):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(errors.BackendError, match="no CUDA device"):
        score(model, rows(BANDIT), device="cuda")


def test_weights_streamed_under_a_limit_score_the_same(model):
    wanted = score(model, rows(BANDIT, BANDIT * 9, options=["A", "B"]))
    found = score(model, rows(BANDIT, BANDIT * 9, options=["A", "B"]), memory_limit="4GB", weights="streamed")
    assert found.responses.equals(wanted.responses)
    memory = found.manifest["models"]["tiny"]["memory"]
    assert (memory["weights"], memory["limit_bytes"], memory["read_ahead"]) == ("streamed", 4_000_000_000, 1)
    assert found.manifest["models"]["tiny"]["window_slots"] == memory["window_slots"] <= memory["max_slots"]
    assert found.manifest["config"]["memory_limit"] == "4GB"
    assert wanted.manifest["models"]["tiny"]["memory"]["weights"] == "resident"


def test_a_transcript_beyond_the_limit_is_refused_before_it_is_run(model, monkeypatch):
    """The longest transcript in characters is planned for; another one may have more tokens."""
    monkeypatch.setattr("psyfast.model_run.ModelRun._slots_of_longest", lambda self, traits: 64)
    limit = resident_bytes() + 1_000_000_000  # whatever other tests have left in this process
    settings = {"memory_limit": limit, "weights": "streamed", "protocol": "paper"}
    small = score(model, rows(BANDIT), **settings).manifest["models"]["tiny"]["memory"]
    sizes = model_sizes_with_slot(small["slot_bytes"] * small["max_slots"] // 2000)
    monkeypatch.setattr("psyfast.process_memory.model_sizes", sizes)
    with pytest.raises(
        UsageError,
        match=r"row 0: takes 5,\d+ tokens at once, and (1,9|2,0)\d\d fit into \d\.\d\d GB.*--memory-limit \d\.\d\dGB",
    ):
        score(model, rows(BANDIT * 150), window_slots=64, **settings)


def model_sizes_with_slot(slot_bytes):
    from dataclasses import replace

    from psyfast.footprint import model_sizes

    return lambda *arguments: replace(model_sizes(*arguments), slot_bytes=slot_bytes)


def test_no_marked_response_at_all_is_an_error(model):
    with pytest.raises(DataError, match="none marks a response"):
        score(model, rows("Nothing here."))


@pytest.mark.parametrize("transcripts", [None, 5, {"text": BANDIT}])
def test_what_is_no_list_of_transcripts(model, transcripts):
    with pytest.raises(UsageError, match="put it into a list"):
        score(model, transcripts)


def test_a_result_shows_itself_in_a_line(model):
    assert repr(score(model, rows(BANDIT))) == "ScoreResult(5 responses; models: tiny; folder: None)"


def test_models_that_cannot_be_told_apart(model, tmp_path):
    other = make_llama(tmp_path / "tiny")
    with pytest.raises(UsageError, match="called 'tiny'"):
        psyfast.score([str(model), str(other)], rows(BANDIT))


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        score(tmp_path / "nowhere", rows(BANDIT))


def test_without_sharing_a_transcripts_options_are_split_and_score_the_same(model):
    """24 options of several tokens, each with the transcript of its own: more than a window holds at once."""
    words = [f"the {name} box" for name in ("green", "yellow", "small", "heavy")]
    text = "You choose. " + "".join(f"Trial {i}. You open <<{words[i % 4]}>>.\n" for i in range(6))
    data = rows(text, "You open <<the box>>.", options=words)
    shared = score(model, data, window_slots=1024)
    alone = score(model, data, share=False, window_slots=1024)
    kept, anew = (result.to_arrow().to_pylist() for result in (shared, alone))
    for one, other in zip(kept, anew, strict=True):
        assert other["nll_nats"] == pytest.approx(one["nll_nats"], abs=1e-4)
        assert other["option_nll_nats"] == pytest.approx(one["option_nll_nats"], abs=1e-4)
    tokens = [result.manifest["tokens"]["tiny"]["plain"] for result in (shared, alone)]
    assert tokens[0]["total"] == tokens[1]["total"]
    assert tokens[1]["unique"] > 1024 > tokens[0]["unique"]
    # What is computed anew for comparison is work without need, and credited to nobody.
    required = [result.manifest["peak"]["required_gflop"] for result in (shared, alone)]
    assert required[1] == pytest.approx(required[0], rel=0.01)


@pytest.mark.parametrize("off", ["share", "sparse", "join_segments"])
def test_an_optimisation_switched_off_changes_no_bit(model, off):
    words = ["the green box", "the red box", "both"]
    text = "You choose. " + "".join(f"Trial {i}. You open <<{words[i % 3]}>>.\n" for i in range(6))
    data = rows(text, "You open <<both>>.", options=words)
    kept, changed = (score(model, data, **settings).to_arrow() for settings in ({}, {off: False}))
    for column in ("nll_nats", "option_nll_nats", "entropy_nats", "rank"):
        assert kept[column].equals(changed[column]), column


def test_the_level_can_be_chosen(model):
    result = score(model, rows(BANDIT), isa="portable")
    assert result.manifest["arithmetic"]["isa"] == "portable"
    with pytest.raises(BackendError, match="choose one of portable"):
        score(model, rows(BANDIT), isa="mmx")
