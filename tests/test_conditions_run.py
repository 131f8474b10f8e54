"""Several conditions in one run: the same bits as alone, what they share, resumed and repeated runs, refusals."""

import json
import random
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

import psyfast
from psyfast.api import score_again
from psyfast.config import ScoreConfig
from psyfast.data.conditions.registry import conditions_of
from psyfast.data.rendering import Source
from psyfast.errors import DataError, ModelError, RunError, UsageError
from psyfast.inputs import find_inputs
from psyfast.scoring import score_run
from psyfast.store.reading import compare_runs, responses_dataset
from psyfast.store.run_folder import RunFolder
from tests.tiny import make_llama

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}</>\n{% endfor %}"
ALL = (
    "plain", "chat", "persona", "shuffled-persona", "discrete", "no-instructions", "no-history", "history=2", "relabel",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def write_rows(path, num_participants, longest=12):
    rng = random.Random(1)
    with path.open("w") as file:
        for participant in range(num_participants):
            trials = [f"Trial {i}. You press <<{rng.choice('JF')}>>.\n" for i in range(rng.randrange(1, longest))]
            row = {"text": "You choose between J and F.\n" + "".join(trials), "participant": participant}
            row |= {"options": ["J", "F"]} if participant % 3 else {}
            row |= {"age": 20 + participant} if participant % 4 else {}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "prompts.jsonl", 24)


def config_of(model, data, *conditions, **changes):
    settings = {"lane": "fp32", "window_slots": 1024, "threads": 1, "conditions": conditions or ALL, **changes}
    return ScoreConfig((str(model),), (str(data),), **settings)


def run_of(config, folder, **how):
    return score_run(find_inputs(config, folder, **how))


@pytest.fixture(scope="module")
def together(model, data, tmp_path_factory):
    return run_of(config_of(model, data), tmp_path_factory.mktemp("runs") / "together")


def rows_of(run, condition):
    """All rows of a condition, in the order of their keys."""
    table = responses_dataset(run).to_table()
    names = [name for name in table.column_names if name != "condition"]
    rows = [row for row in table.to_pylist() if row["condition"] == condition]
    return sorted(([row[name] for name in names] for row in rows), key=lambda row: (row[2], row[3]))


@pytest.mark.parametrize("condition", ALL)
def test_a_condition_has_the_bits_that_it_has_alone(condition, together, model, data, tmp_path):
    alone = run_of(config_of(model, data, condition), tmp_path / "alone")
    rows = rows_of(together, condition)
    assert len(rows) > 20
    assert rows == rows_of(alone, condition)


@pytest.mark.parametrize("off", ["share", "sparse", "join_segments"])
def test_every_optimisation_off_gives_the_same_bits(off, together, model, data, tmp_path):
    other = run_of(config_of(model, data, **{off: False}), tmp_path / "other")
    for condition in ALL:
        assert rows_of(together, condition) == rows_of(other, condition)


def test_a_large_window_gives_the_same_bits(together, model, data, tmp_path):
    """And a small one splits transcripts whose texts pass it over several batches."""
    other = run_of(config_of(model, data, window_slots=65_536), tmp_path / "other")
    small = run_of(config_of(model, data, window_slots=128), tmp_path / "small")
    assert len(small.finished_parts("tiny", "no-history")) == 24
    for condition in ALL:
        assert rows_of(together, condition) == rows_of(other, condition) == rows_of(small, condition)


def test_parts_and_manifest_count_what_each_condition_adds(together):
    manifest = together.read_manifest()
    tokens = manifest["tokens"]["tiny"]
    for condition in ALL:
        parts = together.finished_parts("tiny", condition)
        assert sum(part.num_unique_tokens for part in parts) == tokens[condition]["unique"]
        assert tokens[condition]["unique"] <= tokens[condition]["total"]
    assert tokens["history=2"]["unique"] < 0.7 * tokens["history=2"]["total"]
    found = manifest["conditions"]
    assert found["persona"]["left_out"] == {"no_persona": 6}
    assert found["persona"]["num_transcripts"] == 18
    # Eight bring no choice set; in one of them both letters were pressed often enough for `relabel` to find it.
    assert found["relabel"]["left_out"] == {"refused_too_few_letters": 7}
    assert list(found["chat"]["by_template"]) == [manifest["models"]["tiny"]["template_sha256"]]


def shared_of(model, text, conditions, tmp_path, **fields):
    """Tokens in all and computed, of each condition, for one transcript."""
    rows = [{"text": text, **fields}]
    result = psyfast.score(str(model), rows, conditions=conditions, lane="fp32", out=tmp_path / "run", threads=1)
    tokens = result.manifest["tokens"]["tiny"]
    return {name: (tokens[name]["total"], tokens[name]["unique"]) for name in conditions}


def test_persona_and_plain_share_a_bos_and_nothing_else(model, tmp_path):
    text = "You choose.\n" + "Trial. You press <<J>>.\n" * 5
    found = shared_of(model, text, ("plain", "persona"), tmp_path, age=30)
    assert found["plain"][0] == found["plain"][1]
    assert found["persona"][1] == found["persona"][0] - 1


def test_trials_without_history_share_the_instructions(model, tmp_path):
    lines = [f"{word} comes. You press <<J>>.\n" for word in ("Alpha", "Beta", "Gamma", "Delta", "Epsilon")]
    text = "You choose between two machines.\n" + "".join(lines)
    found = shared_of(model, text, ("no-history",), tmp_path)
    alone = shared_of(model, text, ("plain",), tmp_path / "plain")
    total, unique = found["no-history"]
    from psyfast.data.tokenizer import Tokenizer
    from psyfast.model.load.tokenizer import load_tokenizer

    tokenizer = Tokenizer(load_tokenizer(str(model)))
    instructions = len(tokenizer.encode("You choose between two machines.\n").ids)
    assert unique == total - 4 * instructions
    assert unique < alone["plain"][1]  # what stands after the last response of a trial is computed for no trial


def test_transcripts_table_has_every_text_once(together):
    table = pq.read_table(together.transcripts_path).to_pylist()
    keys = [(row["participant"], row["condition"], row["text_idx"]) for row in table]
    assert len(keys) == len(set(keys))
    assert {row["condition"] for row in table} == set(ALL)
    assert all((row["template_sha256"] is not None) == (row["condition"] == "chat") for row in table)
    mapping = next(json.loads(row["details"])["mapping"] for row in table if row["condition"] == "relabel")
    assert sorted(mapping) == sorted(mapping.values()) == ["F", "J"]
    texts = {(row["participant"], row["condition"]): row["text"] for row in table if row["text_idx"] == 0}
    assert texts["1", "persona"] == "Interviewer: What is your age?\nInterviewee: 21.0\n\n" + texts["1", "plain"]


def test_relabelled_rows_stay_in_the_source_s_letters(together):
    plain = {(row[2], row[3]): row for row in rows_of(together, "plain")}
    names = [name for name in responses_dataset(together).schema.names if name != "condition"]
    response, options = names.index("response"), names.index("options")
    for row in rows_of(together, "relabel"):
        assert row[response] == plain[row[2], row[3]][response]
        assert row[options] == (["J", "F"] if int(row[2]) % 3 else None)


# --- resumed, killed, repeated


def test_a_resumed_run_adds_a_condition(model, data, tmp_path, together):
    out = tmp_path / "run"
    run_of(config_of(model, data, "plain", "persona"), out)
    run = run_of(config_of(model, data, "relabel", "plain"), out, resume=True)
    manifest = run.read_manifest()
    assert manifest["status"] == "complete"
    assert manifest["config"]["conditions"] == ["plain", "persona", "relabel"]
    assert set(manifest["conditions"]) == {"plain", "persona", "relabel"}
    for condition in ("plain", "persona", "relabel"):
        assert rows_of(run, condition) == rows_of(together, condition)
    keys = [(row["participant"], row["condition"]) for row in pq.read_table(run.transcripts_path).to_pylist()]
    assert len(keys) == len(set(keys)) == 24 + 18 + 17


def test_a_run_killed_between_two_conditions_goes_on_with_its_windows(model, data, tmp_path, together):
    out = tmp_path / "killed"
    shutil.copytree(together.path, out)
    run = RunFolder(out)
    num_parts = len(run.finished_parts("tiny", "plain"))
    for condition_idx, condition in enumerate(ALL):
        for path in sorted(run.part_folder("tiny", condition).glob("part-*"))[num_parts // 2 + (condition_idx < 4) :]:
            path.unlink()
    run_of(config_of(model, data), out, resume=True)
    compared = compare_runs(together.path, out)
    assert compared.same_bits, compared


def test_parts_that_were_lost_in_the_middle_come_back(model, data, tmp_path, together):
    out = tmp_path / "lost"
    shutil.copytree(together.path, out)
    run = RunFolder(out)
    for condition, part_idx in (("plain", 1), ("plain", 3), ("chat", 1), ("relabel", 2)):
        (run.part_folder("tiny", condition) / f"part-{part_idx:05d}.parquet").unlink()
    run_of(config_of(model, data), out, resume=True)
    assert compare_runs(together.path, out).same_bits


def test_the_same_run_from_its_manifest(together, tmp_path):
    _, compared = score_again(together.manifest_path, tmp_path / "again")
    assert compared is not None
    assert compared.same_bits


def test_a_resumed_run_from_its_manifest(model, data, tmp_path):
    """Made at once, its conditions are cut into parts together; what is compared are rows."""
    run_of(config_of(model, data, "plain"), tmp_path / "run")
    run = run_of(config_of(model, data, "no-history"), tmp_path / "run", resume=True)
    again, compared = score_again(run.manifest_path, tmp_path / "again")
    assert len(again.finished_parts("tiny", "plain")) != len(run.finished_parts("tiny", "plain"))
    assert compared is not None
    assert compared.same_bits
    assert compared.num_rows == len(rows_of(run, "plain")) + len(rows_of(run, "no-history"))


def test_another_seed_is_refused(model, data, tmp_path):
    """Also beside a condition that draws nothing: the manifest has one seed, and makes the whole run again."""
    out = tmp_path / "run"
    run_of(config_of(model, data, "plain", "relabel"), out)
    with pytest.raises(RunError, match="--seed was 0 and is now 1"):
        run_of(config_of(model, data, "plain", seed=1), out, resume=True)


def test_trials_from_elsewhere_are_refused(model, data, tmp_path):
    out = tmp_path / "run"
    run_of(config_of(model, data, "no-history", trials="callable"), out, decide_trials=lambda t: [0] * t.num_responses)
    with pytest.raises(RunError, match="where the trials come from was callable and is now data"):
        run_of(config_of(model, data, "plain"), out, resume=True)


def test_a_table_of_texts_from_before_there_were_conditions_keeps_them(model, data, tmp_path):
    run = run_of(config_of(model, data, "plain"), tmp_path / "run")
    table = pq.read_table(run.transcripts_path).drop_columns(["template_sha256", "text_idx", "details"])
    pq.write_table(table.replace_schema_metadata({"schema_version": "1"}), run.transcripts_path)
    run_of(config_of(model, data, "persona"), tmp_path / "run", resume=True)
    found = pq.read_table(run.transcripts_path).to_pylist()
    assert [row["text"] for row in found if row["condition"] == "plain"] == table["text"].to_pylist()
    assert sum(row["condition"] == "persona" for row in found) == 18


def test_models_of_one_template_with_other_special_tokens_have_texts_of_their_own(model, data, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, eos in zip(folders, ("</s>", "<s>"), strict=True):
        shutil.copytree(model, folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE.replace("</>", "{{ eos_token }}"))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": eos}))
    config = replace(config_of(model, data, "chat"), models=tuple(map(str, folders)))
    run = run_of(config, tmp_path / "run")
    models = run.read_manifest()["models"]
    ends = {row["template_sha256"]: row["text"][-5:-1] for row in pq.read_table(run.transcripts_path).to_pylist()}
    assert ends[models["one"]["template_sha256"]] == "</s>"
    assert ends[models["two"]["template_sha256"]].endswith("<s>")
    run_of(replace(config, models=(str(folders[0]),)), tmp_path / "run", resume=True)


# --- a user's own condition


def think_first(transcript):
    return Source(transcript).join(["Think before you answer.\n", (0, len(transcript.text))])


def test_an_own_condition_runs_beside_the_others(model, data, tmp_path):
    result = psyfast.score(
        str(model), data, conditions=["plain", think_first], lane="fp32", threads=1, out=tmp_path / "run"
    )
    found = result.to_arrow().to_pylist()
    assert {row["condition"] for row in found} == {"plain", "think-first"}
    nll = {(row["condition"], row["participant"], row["response_idx"]): row["nll_nats"] for row in found}
    assert nll["plain", "0", 0] != nll["think-first", "0", 0]
    with pytest.raises(RunError, match="its condition 'think-first' came from a function"):
        score_again(tmp_path / "run" / "manifest.json", tmp_path / "again")
    psyfast.score(str(model), data, lane="fp32", threads=1, out=tmp_path / "run", conditions="plain", resume=True)


def test_a_function_for_trials(model):
    rows = [{"text": "Go.\n" + "You press <<J>>.\n" * 4}]

    def in_pairs(transcript):
        return [0, 0, 1, 1]

    result = psyfast.score(str(model), rows, conditions="no-history", trials=in_pairs, lane="fp32", threads=1)
    first, second, third, fourth = (row["nll_nats"] for row in result.to_arrow().to_pylist())
    assert (first, second) == (third, fourth)
    assert first != second


def test_models_may_differ_in_their_conditions(model, data, tmp_path):
    """A base model without a chat template, and a post-trained one that has it, in one run."""
    base = make_llama(tmp_path / "base", seed=1, max_position_embeddings=4096)
    out = tmp_path / "run"
    run_of(config_of(base, data, "plain"), out)
    run = run_of(config_of(model, data, "plain", "chat"), out, resume=True)
    manifest = run.read_manifest()
    assert (manifest["status"], manifest["unfinished"]) == ("complete", [])
    assert {name: entry["conditions"] for name, entry in manifest["models"].items()} == {
        "base": ["plain"],
        "tiny": ["plain", "chat"],
    }
    _, compared = score_again(run.manifest_path, tmp_path / "again")
    assert compared is not None
    assert compared.same_bits


# --- what cannot be


def test_a_model_without_a_template_is_refused_before_anything(model, data, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template, which the condition 'chat' needs"):
        run_of(config_of(bare, data, "plain", "chat"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_template_that_loses_responses_is_named(model, data, tmp_path):
    folder = tmp_path / "loses"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages[-2:] %}{{ m.content }}{% endfor %}")
    with pytest.raises(ModelError, match="loses: its chat template"):
        run_of(config_of(folder, data, "chat"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_condition_without_anybody_is_refused(model, tmp_path):
    rows = [{"text": "You press <<J>>."}]
    with pytest.raises(DataError, match=r"takes part in the condition 'persona' \(no_persona: 1\)"):
        psyfast.score(str(model), rows, conditions=["plain", "persona"])


def test_a_window_in_which_nobody_takes_part_is_a_part_without_rows(model, tmp_path):
    rows = [{"text": "You press <<J>>. " * 60, "participant": str(idx)} for idx in range(6)]
    rows[5]["age"] = 30
    result = psyfast.score(
        str(model), rows, conditions=["persona"], lane="fp32", threads=1, window_slots=1024, out=tmp_path / "run"
    )
    assert {row["participant"] for row in result.to_arrow().to_pylist()} == {"5"}
    resumed = psyfast.score(
        str(model),
        rows,
        conditions=["persona"],
        lane="fp32",
        threads=1,
        window_slots=1024,
        out=tmp_path / "run",
        resume=True,
    )
    assert resumed.responses.equals(result.responses)


def test_conditions_that_are_none(model):
    rows = [{"text": "You press <<J>>."}]
    with pytest.raises(UsageError, match="no condition was named"):
        psyfast.score(str(model), rows, conditions=[])
    with pytest.raises(UsageError, match="None has no name to go by"):
        psyfast.score(str(model), rows, conditions=None)
    with pytest.raises(UsageError, match=r"condition 'chatt' is unknown.*did you mean 'chat'"):
        psyfast.score(str(model), rows, conditions="chatt")
    with pytest.raises(UsageError, match="has no name to go by"):
        conditions_of([], [lambda transcript: transcript])
