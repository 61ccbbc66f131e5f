"""The command `train` and the settings of `run` reach the trainer whole."""

import inspect

from click.testing import CliRunner

from po_distill.cli import cli
from po_distill.commands.training import train
from po_distill.records import LoRASettings
from po_distill.settings import TrainSettings, quickstart_settings
from po_distill.stages.lora_trainer import LoRATrainer

ARGUMENTS = set(inspect.signature(LoRATrainer).parameters)
OF_THE_COMMAND = {"data", "output", "dry_run", "held_out", "allow", "validation", "role", "contract", "prompt_path"}
OF_THE_ADAPTER = {"rank", "alpha", "dropout", "target", "rslora", "dora"}


def test_every_option_and_every_setting_is_an_argument_of_the_trainer() -> None:
    options = {option.name for option in train.params} - OF_THE_COMMAND - OF_THE_ADAPTER - {"as_json"}
    assert options - {"launcher_option"} == ARGUMENTS - {"lora", "launcher_options"}
    assert set(TrainSettings().for_trainer()) == ARGUMENTS
    LoRATrainer(**TrainSettings().for_trainer())


def test_the_defaults_of_command_settings_and_trainer_are_the_same() -> None:
    defaults = {name: value.default for name, value in inspect.signature(LoRATrainer).parameters.items()}
    settings = TrainSettings().for_trainer()
    given = train.make_context("train", []).params
    for name in (settings.keys() & given.keys()) - {"report_to"}:
        assert given[name] == settings[name] == defaults[name], name
    assert settings["lora"] == LoRASettings()


def test_quickstart_measures_no_held_out_rows() -> None:
    assert quickstart_settings(5).train.evaluate_every == 0


def test_the_help_shows_the_options_under_headings() -> None:
    told = CliRunner().invoke(cli, ["train", "--help"]).output
    places = [
        told.index(f"{heading}:") for heading in ("What is trained", "How", "The adapter", "Held-out rows and reports")
    ]
    assert places == sorted(places)
