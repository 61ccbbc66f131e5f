from pathlib import Path

import pytest

from po_distill.errors import InputError, SettingsError
from po_distill.settings import Settings, quickstart_settings, read_settings


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_plans_values(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "# nothing\n"))
    assert settings == Settings()
    train = settings.train
    assert (train.base, train.lora.rank, train.lora.alpha, train.lora.dropout) == ("mistral-7b-instruct", 32, 64, 0.05)
    assert (train.epochs, train.batch, train.lr, train.max_seq_len) == (3, 4, 1e-4, 2048)
    assert (settings.teacher.batch_size, settings.teacher.min_score) == (20, 0.85)


def test_sections_are_read(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "train: {base: x, lora: {rank: 8}}\nconcepts: {count: 600}\n"))
    assert (settings.train.base, settings.train.lora.rank, settings.concepts.count) == ("x", 8, 600)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trian: {}", "no setting 'trian'. Did you mean 'train'"),
        ("train: {lora: {rnak: 3}}", "no setting 'train.lora.rnak'. Did you mean 'rank'"),
        ("train: {epochs: many}", "train.epochs.*valid number"),
        ("teacher: {min_score: 85}", "teacher.min_score.*less than or equal to 1"),
        ("- a", "is a list, not a mapping"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read_settings(write(tmp_path, text))


def test_a_missing_or_broken_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_settings(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="not YAML"):
        read_settings(write(tmp_path, "a: ["))


def test_quickstart_needs_no_network_and_keeps_to_its_minutes() -> None:
    settings = quickstart_settings(3)
    assert (settings.teacher.provider, settings.train.base, settings.train.minutes) == (
        "offline",
        "smollm2-135m-instruct",
        3,
    )
    assert (settings.evaluate.subset, quickstart_settings(30).evaluate.subset) == (12, 30)
