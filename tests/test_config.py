"""The workflow file: what is wrong with it is said in one line, with file, key, value and what would be valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from sciflow.config import Training, Workflow, load_workflow, validate
from sciflow.errors import ConfigError

GOOD = "name: demo\ndata: {store: rows.zarr}\n"


@pytest.fixture
def problem(tmp_path: Path):
    """What ``load_workflow`` says of a text, without the path of the file."""

    def of(text: str | bytes, *overrides: str) -> str:
        file = tmp_path / "flow.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError) as caught:
            load_workflow(file, overrides)
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(str(file), "flow.yaml")

    return of


class TestAGoodFile:
    def test_is_read_with_defaults_for_what_it_leaves_out(self, tmp_path):
        file = tmp_path / "flow.yaml"
        file.write_text(GOOD)
        workflow = load_workflow(file)
        assert (workflow.name, workflow.data.store) == ("demo", "rows.zarr")
        assert workflow.training == Training()
        assert workflow.model == {"name": "nsf"}

    @pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", ".001", "1.e-3"])
    def test_numbers_may_be_written_as_scientists_write_them(self, text, tmp_path):
        file = tmp_path / "flow.yaml"
        file.write_text(GOOD + f"training: {{learning_rate: {text}}}\nmodel: {{name: nsf, tail_bound: {text}}}\n")
        workflow = load_workflow(file)
        assert workflow.training.learning_rate == 1e-3
        # In the free-form section too, where no type makes a number of a text.
        assert workflow.model["tail_bound"] == 1e-3

    def test_every_key_can_be_set_from_the_command_line(self, tmp_path):
        file = tmp_path / "flow.yaml"
        file.write_text(GOOD + "training: {max_steps: 5, batch_size: 7}\n")
        workflow = load_workflow(
            file, ["training.max_steps=9", "training.learning_rate=1e-4", "model.hidden_features=[8, 8]", "name=other"]
        )
        assert (workflow.training.max_steps, workflow.training.batch_size) == (9, 7)
        assert workflow.training.learning_rate == 1e-4
        assert workflow.model["hidden_features"] == [8, 8]
        assert workflow.name == "other"

    def test_how_log_p_is_to_be_known_can_be_set_too(self):
        content = {"name": "a", "data": {"store": "s"}, "scoring": {"options": {"tolerance": 1.0, "seed": 3}}}
        scoring = load_workflow(content, ["scoring.method=ode", "scoring.options.tolerance=1e-4"]).scoring
        assert (scoring.method, scoring.options) == ("ode", {"tolerance": 1e-4, "seed": 3})
        assert content["scoring"] == {"options": {"tolerance": 1.0, "seed": 3}}

    def test_an_empty_override_goes_back_to_the_rule(self, tmp_path):
        assert load_workflow({"name": "a", "data": {"store": "s"}}, ["training.max_steps="]).training.max_steps is None

    def test_a_mapping_is_not_changed_by_overrides(self):
        content = {"name": "demo", "data": {"store": "a"}, "training": {"max_steps": 5}}
        load_workflow(content, ["training.max_steps=9", "data.store=b"])
        assert content == {"name": "demo", "data": {"store": "a"}, "training": {"max_steps": 5}}

    def test_a_workflow_is_a_source_too(self):
        workflow = Workflow(name="demo", data={"store": "a"})
        assert load_workflow(workflow, ["data.store=b"]).data.store == "b"


class TestKeys:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainning: {}\n", "flow.yaml: trainning: unknown key; did you mean training?"),
            (
                "training: {learning_rat: 1}\n",
                "flow.yaml: training.learning_rat: unknown key; did you mean learning_rate?",
            ),
            (
                "cluster: {zzz: 1}\n",
                "flow.yaml: cluster.zzz: unknown key; known: cpus_per_worker, max_failures, num_workers, use_gpu",
            ),
        ],
    )
    def test_an_unknown_key_is_told_with_the_nearest_known_one(self, problem, text, message):
        assert problem(GOOD + text) == message

    def test_an_unknown_key_explains_what_is_missing(self, problem):
        assert problem("nam: demo\ndata: {store: a}\n") == "flow.yaml: nam: unknown key; did you mean name?"

    @pytest.mark.parametrize(
        ("text", "key"), [("data: {store: a}\n", "name"), ("name: a\n", "data"), ("name: a\ndata: {}\n", "data.store")]
    )
    def test_a_missing_key_is_named(self, problem, text, key):
        assert problem(text) == f"flow.yaml: {key}: missing; it must be given"

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("5: a", "5"),
            ("training: {5: a}", "training.5"),
            ("model: {5: a}", "model.5"),
            ("scoring: {options: {5: a}}", "scoring.options.5"),
        ],
    )
    def test_a_key_that_is_no_text_is_refused(self, problem, text, key):
        assert problem(GOOD + text + "\n") == f"flow.yaml: {key}: a key must be a text; got 5"

    def test_keys_may_be_merged_from_elsewhere(self, tmp_path):
        file = tmp_path / "flow.yaml"
        file.write_text(
            "name: demo\ndata: &data {store: a, fingerprint: b}\nmodel: {name: nsf, other: {<<: *data, store: c}}\n"
        )
        assert load_workflow(file).model["other"] == {"store": "c", "fingerprint": "b"}

    def test_a_key_given_twice_is_refused(self, problem):
        assert "key 'seed' is given twice" in problem(GOOD + "training: {seed: 1, seed: 2}\n")
        assert "key 'name' is given twice" in problem(GOOD + "name: other\n")
        assert "key 'seed' is given twice" in problem(GOOD + "training: {<<: {max_steps: 3}, seed: 1, seed: 2}\n")


class TestValues:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("training: {max_steps: many}", ["training.max_steps", "'many'", "integer"]),
            ("training: {max_steps: 0}", ["training.max_steps", "got 0", "greater than or equal to 1"]),
            ("training: {max_steps: 1.5}", ["training.max_steps", "1.5", "integer"]),
            ("training: {max_steps: true}", ["training.max_steps", "got True", "a number"]),
            ("training: {learning_rate: -1}", ["training.learning_rate", "-1", "greater than 0"]),
            ("training: {seed: 18446744073709551616}", ["training.seed", "18446744073709551616", "less than or equal"]),
            ("training: {learning_rate: .nan}", ["training.learning_rate", "nan", "finite"]),
            ("training: {warmup: 1}", ["training.warmup", "got 1", "less than 1"]),
            ("training: {precision: float16}", ["training.precision", "'float16'", "'float32' or 'bfloat16'"]),
            ("training: 5", ["training", "got 5", "a mapping of keys to values"]),
            ("model: nsf", ["model", "'nsf'", "a mapping of keys to values"]),
            ("scoring: {out: 5}", ["scoring.out", "got 5", "string"]),
            ("scoring: {method: 5}", ["scoring.method", "got 5", "string"]),
            ("detection: {stores: []}", ["detection.stores", "got []", "it must be a list that is not empty"]),
            ("scoring: {options: fine}", ["scoring.options", "got 'fine'", "a mapping of keys to values"]),
            ("cluster: {num_workers: 0}", ["cluster.num_workers", "got 0", "greater than or equal to 1"]),
        ],
    )
    def test_a_wrong_one_is_told_with_what_is_valid(self, problem, text, words):
        message = problem(GOOD + text + "\n")
        assert message.startswith("flow.yaml: ")
        assert all(word in message for word in words), message

    def test_a_store_without_a_name_is_refused(self, problem):
        message = "flow.yaml: data.store: got '', it must be a text that is not empty"
        assert problem("name: a\ndata: {store: ''}\n") == message

    @pytest.mark.parametrize("name", ["../other", "a/b", ".hidden", "'two words'", "''"])
    def test_a_name_is_that_of_a_folder(self, problem, name):
        message = problem(f"name: {name}\ndata: {{store: a}}\n")
        assert "name: got" in message
        assert "letters, digits" in message


class TestFiles:
    def test_that_are_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none\.yaml: no such workflow file"):
            load_workflow(tmp_path / "none.yaml")

    def test_that_are_folders(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_workflow(tmp_path)

    @pytest.mark.parametrize("content", [b"\x80\x02\xff\x00binary", b"\x00\x01\x02", b"\x89PNG\r\n\x1a\n"])
    def test_that_are_not_text(self, problem, content):
        assert problem(content).startswith("flow.yaml: ")

    @pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n", "42\n"])
    def test_that_are_no_mapping(self, problem, text):
        assert "a workflow is a mapping with name, data, model, training" in problem(text)

    @pytest.mark.parametrize("text", ["name: [unclosed\n", "a: b: c\n", "\tname: x\n", "? [a]\n: b\n"])
    def test_that_are_no_yaml(self, problem, text):
        assert problem(text).startswith("flow.yaml: not YAML: ")

    @pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "2020-13-45", "9" * 5000, "!!bool x"])
    def test_with_values_that_cannot_be_made(self, problem, text):
        assert problem(GOOD + f"model: {text}\n").startswith("flow.yaml: not YAML: ")

    def test_run_no_code(self, problem, tmp_path):
        witness = tmp_path / "witness"
        problem(f'name: !!python/object/apply:os.system ["touch {witness}"]\n')
        assert not witness.exists()


class TestOverrides:
    def test_without_a_value_are_refused(self, problem):
        assert (
            problem(GOOD, "training.max_steps") == "training.max_steps: give key=value, such as training.max_steps=500"
        )
        assert problem(GOOD, "=5") == "=5: give key=value, such as training.max_steps=500"

    def test_that_are_wrong_are_not_blamed_on_the_file(self, problem):
        message = "training.learning_rat: unknown key; did you mean learning_rate?"
        assert problem(GOOD, "training.learning_rat=1e-3") == message

    def test_do_not_take_the_blame_of_the_file(self, problem):
        message = problem(GOOD + "training: {max_steps: many}\n", "cluster.num_workers=2")
        assert message.startswith("flow.yaml: training.max_steps: got 'many'")

    def test_that_are_no_yaml(self, problem):
        assert problem(GOOD, "model.hidden_features=[1,") == "model.hidden_features: '[1,' is not a YAML value"

    def test_below_a_value_that_is_no_mapping(self, problem):
        assert problem(GOOD, "name.first=1").startswith("name: got {'first': 1}")


def test_a_section_is_a_mapping():
    with pytest.raises(ConfigError, match=r"run.yaml: a mapping of keys to values expected; this is \[5\]"):
        validate(Training, [5], "run.yaml")


def test_settings_given_in_python_are_checked_alike():
    with pytest.raises(ConfigError, match=r"sciflow.fit: max_step: unknown key; did you mean max_steps\?"):
        validate(Training, {"max_step": 5}, "sciflow.fit")
